from configparser import ConfigParser
from setuptools import setup, find_packages

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
setup(name=cfg['lib_name'], version=cfg['version'], packages=find_packages(include=['posebook*']),
      install_requires=cfg['requirements'].split())
