"Figures, files, pages and the player in a real browser, for sketch, player and view."
import json, math, os, re, shutil, subprocess, sys
from html.parser import HTMLParser

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from posebook import player, view
from posebook.sketch import (as_positions, figure_image, hulls, on_ground, paint, sketch,
                             view_axes)
from posebook.skeleton import get_skeleton, list_skeletons, pose_to_joints
from posebook.view import (animate, html_report, plot_compare, plot_joint_distributions, plot_pose,
                           plot_poses, plot_strip, save_figure)

POSES = .3*torch.randn(6, 55, 3, generator=torch.Generator().manual_seed(0))
SMPLX = get_skeleton('smplx')

def pixels(fig): return np.asarray(figure_image(fig, 60))

# ---- sketch

@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_hull_holds_its_circles_and_nothing_sticks_out(seed, k):
    g = np.random.default_rng(seed)
    c, r = g.normal(size=(3, k, 2)), g.uniform(.05, 1, (3, k))
    out = hulls(c, r, 64)
    a = np.arange(64)*2*np.pi/64
    u = np.stack([np.cos(a), np.sin(a)])
    support = (c@u+r[..., None]).max(1)
    assert np.allclose(np.einsum('bnd,dn->bn', out, u), support)       # touches every tangent
    assert ((out@u).max(1) <= support+1e-9).all()                      # crosses none

@given(st.floats(-400, 400), st.floats(-90, 90))
def test_view_is_a_rotation(azim, elev):
    R = view_axes((azim, elev))
    assert np.allclose(R@R.T, np.eye(3)) and math.isclose(np.linalg.det(R), 1)

@pytest.mark.parametrize('bad', ['above', (1,), (0, math.nan), (1, 2, 3)])
def test_bad_views(bad):
    with pytest.raises(ValueError, match='unknown view'): plot_pose(POSES[0], view=bad)

@pytest.mark.parametrize('name', list_skeletons())
def test_every_layout_can_be_drawn(name):
    s = get_skeleton(name)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, len(s), 3, generator=g)
    sk = sketch(*as_positions(x, s, True))
    assert np.isfinite(sk.points).all() and (sk.radii > 0).all()
    assert sk.parts.max() < sk.points.shape[1]
    image = pixels(plot_pose(x[0], s, positions=True, axes=False))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20           # not blank
    if s.left: assert {0, 1} <= set(sk.sides.tolist())

def test_units_do_not_matter():
    x = pose_to_joints(POSES).double()
    a, b = (sketch(*as_positions(k*x, SMPLX, True)) for k in (1, 1000))
    va, vb = (paint(s, on_ground(s, 0), 'front')[0] for s in (a, b))
    assert np.allclose(1000*va, vb)

def test_flat_positions():
    x = torch.rand(17, 2, generator=torch.Generator().manual_seed(0))*100
    fig = plot_pose(x, 'coco17', positions=True, view='front', unit='px')
    assert fig.axes[0].get_xlabel() == 'x [px]'

# ---- bad input

INPUT = [(torch.zeros(10, 3), r'found \(10, 3\)'), (torch.zeros(2, 55, 4), r'found \(2, 55, 4\)'),
         (torch.zeros(55), r'found \(55,\)'), (torch.zeros(0, 55, 3), 'at least one pose'),
         (torch.full((55, 3), math.inf), 'finite numbers'), (torch.zeros(1, 1, 55, 3), 'found')]

@pytest.mark.parametrize('x, says', INPUT)
@pytest.mark.parametrize('draw', [plot_pose, plot_poses, plot_strip, animate,
                                  lambda x: plot_compare(x, x), plot_joint_distributions])
def test_bad_poses(draw, x, says):
    with pytest.raises(ValueError, match=says): draw(x)

def test_bad_options(tmp_path):
    with pytest.raises(ValueError, match='no joint'): plot_pose(POSES[0], labels=['tail'])
    with pytest.raises(ValueError, match='expected 6 colors'): plot_poses(POSES, colors=['red'])
    with pytest.raises(ValueError, match='at most 500'): plot_poses(POSES[:1].expand(501, -1, -1))
    with pytest.raises(ValueError, match='empty dict'): animate({})
    for fps in (-1, math.inf):
        with pytest.raises(ValueError, match='positive number'): animate(POSES, fps=fps)

def test_unknown_suffix_writes_nothing(tmp_path):
    for write in (lambda p: animate(POSES, p), lambda p: save_figure(plot_pose(POSES[0]), p),
                  lambda p: html_report('a', {}, p)):
        for name in ('a.xyz', 'a'):
            with pytest.raises(ValueError, match='ends in'): write(tmp_path/'new'/name)
    assert os.listdir(tmp_path) == []

@pytest.mark.parametrize('kind', ['gif', 'mp4', 'html'])
def test_failure_keeps_the_old_file(tmp_path, monkeypatch, kind):
    if kind == 'mp4': pytest.importorskip('imageio_ffmpeg', reason='needs the extra [video]')
    path = tmp_path/f'a.{kind}'
    path.write_text('old')
    def broken(*args, **kwargs): raise RuntimeError('no more')
    monkeypatch.setattr(view, 'draw_sketch', broken)
    monkeypatch.setattr(player, 'html_page', broken)
    with pytest.raises(RuntimeError, match='no more'): animate(POSES, path)
    assert os.listdir(tmp_path) == [path.name] and path.read_text() == 'old'

# ---- figures

def test_figures_stay_out_of_pyplot():
    code = ("import sys, torch; from posebook.view import *; plot_poses(torch.zeros(2,55,3)); "
            "assert 'matplotlib.pyplot' not in sys.modules")
    subprocess.run([sys.executable, '-c', code], check=True)

def test_given_axes_are_used():
    from matplotlib.figure import Figure
    fig = Figure()
    axs = fig.subplots(1, 2)
    assert plot_pose(POSES[0], ax=axs[0]) is axs[0]
    assert axs[0].get_aspect() == 1 and axs[0].collections and not axs[1].collections
    before = axs[0].get_xlim()
    plot_pose(POSES[1], ax=axs[0], color='red', alpha=.5)              # on top, same limits
    assert axs[0].get_xlim() == before and len(axs[0].collections) == 4

@pytest.mark.parametrize('n, ncols', [(1, 6), (5, 6), (6, 6), (7, 3)])
def test_grid(n, ncols):
    fig = plot_poses(POSES[torch.arange(n) % 6], ncols=ncols, titles=list(map(str, range(n))))
    assert [a.get_title() for a in fig.axes] == list(map(str, range(n)))
    assert fig.get_figwidth() <= 7+1e-9
    boxes = np.array([a.get_position().bounds for a in fig.axes])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2]+boxes[:, 2:] <= 1+1e-9).all()
    assert len({tuple(b[:2].round(6)) for b in boxes}) == n

def test_pictures_are_repeatable():
    assert (pixels(plot_poses(POSES)) == pixels(plot_poses(POSES))).all()
    assert (pixels(plot_poses(POSES)) != pixels(plot_poses(POSES.flip(0)))).any()

def test_distributions_count_every_pose():
    x = torch.zeros(100, 55, 3)
    x[:25, 4, 0] = math.pi/4
    x[25:, 4, 0] = 2*math.pi-math.pi/4                                 # the same as -45 degrees
    ax = plot_joint_distributions(x, joints=['left_knee'], components=['x'], bins=20).axes[0]
    verts = ax.patches[0].get_xy()
    lo, hi = ax.get_xlim()
    assert lo < -45 < 45 < hi < 60
    width = (hi-lo)/20
    assert math.isclose(verts[:, 1].max()*width, .75, rel_tol=1e-6)
    assert ax.get_xlabel() == 'rotation [°]'

# ---- files of motion

@pytest.mark.parametrize('fps, frames, seconds', [(30, 6, .2), (10, 6, .6), (90, 2, 1/15)])
def test_gif_time_is_true(tmp_path, fps, frames, seconds):
    with Image.open(animate(POSES, tmp_path/'a.gif', fps=fps, height=100)) as gif:
        assert gif.n_frames == frames
        total = sum((gif.seek(i), gif.info['duration'])[1] for i in range(frames))
    assert abs(total/1000-seconds) <= .005

def test_mp4(tmp_path):
    ffmpeg = pytest.importorskip('imageio_ffmpeg', reason='needs the extra [video]')
    path = animate({'a': POSES, 'b': POSES[:3]}, tmp_path/'a.mp4', fps=10, height=101, title='both')
    reader = ffmpeg.read_frames(str(path))
    meta = next(reader)
    assert meta['fps'] == 10 and not any(v % 2 for v in meta['size'])
    assert sum(1 for _ in reader) == 6

def test_mp4_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)
    with pytest.raises(ImportError, match=r'posebook\[video\]'): animate(POSES, tmp_path/'a.mp4')
    assert os.listdir(tmp_path) == []

# ---- pages

class Page(HTMLParser):
    def __init__(self, text):
        super().__init__(); self.tags, self.links, self.data = [], [], []
        self.feed(text); self.close()
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ('src', 'href', 'srcset') and v[:5] != 'data:']
    def handle_data(self, data): self.data.append(data)

def report(path):
    names = '</script><script>alert(1)</script>'
    return html_report('Report <1>', {
        'Figure': ['A & B', plot_poses(POSES)], 'Table': [{'prior': 'full', 'bpd': 1.5}],
        'Motion': animate({names: POSES, 'b': POSES}, fps=10)}, path)

def test_page_is_self_contained_and_escaped(tmp_path):
    text = report(tmp_path/'r.html').read_text(encoding='utf-8')
    page = Page(text)
    assert page.links == [] and 'http:' not in text and 'https:' not in text
    assert page.tags.count('script') == 2 and page.tags.count('table') == 1
    embedded = next(d for d in page.data if d.startswith('{"title"'))
    clips = json.loads(embedded)['clips']
    assert [c['joints'] for c in clips] == [list(SMPLX.joints)]*2
    assert 'Report &lt;1&gt;' in text and 'A &amp; B' in text
    assert len(text) < 120_000

def test_the_same_page_twice(tmp_path):
    assert report(tmp_path/'a.html').read_bytes() == report(tmp_path/'b.html').read_bytes()

# ---- a real browser

NAMES = 'chromium', 'chromium-browser', 'google-chrome'
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium or Chrome on this machine')

ACT = '''<script>
const P = document.querySelector('.pb-player'), c = P.querySelector('canvas'), out = {};
const ink = () => { const d = c.getContext('2d').getImageData(0,0,c.width,c.height).data;
  let s = 0, blue = 0, orange = 0;
  for (let i = 0; i < d.length; i += 4) if (d[i+3]) {
    s = (s*31 + d[i] + 3*d[i+1] + 7*d[i+2]) % 1000003;
    if (d[i+2] > d[i]+60) blue++; if (d[i] > d[i+2]+60) orange++;
  }
  return [s, blue, orange]; };
const at = (type, x, y) => c.dispatchEvent(
  new PointerEvent(type, {clientX:x, clientY:y, pointerId:1, bubbles:true}));
c.setPointerCapture = () => {};
try {
  out.players = [...document.querySelectorAll('.pb-player')].filter(p => p.player).length;
  P.player.seek(0); out.start = ink(); out.width = c.width;
  out.label = P.querySelector('output').textContent;
  P.player.seek(3.5); out.later = ink(); P.player.seek(0); out.again = ink();
  const r = c.getBoundingClientRect();
  at('pointerdown', r.left+50, r.top+50); at('pointermove', r.left+150, r.top+50);
  at('pointerup', r.left+150, r.top+50);
  out.turned = P.player.state().view; out.drawn = ink();
  c.dispatchEvent(new MouseEvent('dblclick')); at('pointerleave', 0, 0); out.home = ink();
  c.dispatchEvent(new KeyboardEvent('keydown', {key:'ArrowRight'}));
  out.stepped = P.player.state().t;
  const bar = P.querySelector('input'); bar.value = 2; bar.dispatchEvent(new Event('input'));
  out.bar = P.player.state().t;
  P.querySelector('button').click(); out.playing = P.player.state().on;
} catch (e) { out.error = String(e); }
setTimeout(() => {
  out.moved = P.player.state().t;
  const pre = document.createElement('pre'); pre.id = 'result';
  pre.textContent = JSON.stringify(out); document.body.append(pre);
}, 150);
</script>'''

def chromium(folder, page, *args):
    "Run Chromium on a page without a network or a profile"
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
             '--disable-background-networking', '--disable-component-update', '--disable-sync',
             '--host-resolver-rules=MAP * ~NOTFOUND', '--window-size=900,1400',
             '--virtual-time-budget=3000', f'--user-data-dir={folder/"profile"}']
    p = subprocess.run([CHROMIUM, *flags, *args, page.as_uri()], capture_output=True, text=True,
                       timeout=120)
    assert p.returncode == 0, p.stderr[-800:]
    return p

@browser
def test_player_in_a_browser(tmp_path):
    page = animate({'a': POSES, 'b': POSES}, tmp_path/'a.html', fps=10)
    text = page.read_text(encoding='utf-8').replace('</body>', ACT+'</body>')
    page.write_text(text, encoding='utf-8')
    dom = chromium(tmp_path, page, '--dump-dom').stdout
    out = json.loads(re.search(r'<pre id="result">(.*?)</pre>', dom)[1])
    assert 'error' not in out, out
    assert out['players'] == 1 and out['width'] > 300 and out['label'] == '0.00 / 0.50 s'
    assert min(out['start'][1:]) > 200                                 # both sides are there
    assert out['later'] != out['start'] == out['again']                # time moves, and comes back
    assert out['turned'] == [-35-50, 12] and out['drawn'] != out['start'] == out['home']
    assert (out['stepped'], out['bar'], out['playing']) == (1, 2, True)
    assert out['moved'] != 2                                           # it plays

@browser
def test_report_in_a_browser(tmp_path):
    page = report(tmp_path/'r.html')
    chromium(tmp_path, page, f'--screenshot={tmp_path/"r.png"}')
    image = np.asarray(Image.open(tmp_path/'r.png').convert('RGB')).astype(int)
    blue = (image[..., 2] > image[..., 0]+60).sum(1)
    assert (blue[:700] > 0).any() and (blue[700:] > 0).any()           # the figure and the player
