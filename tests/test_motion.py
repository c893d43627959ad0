"Motion files: round trips, oracles, damaged input, and real recordings where there are any."
import io, json, math, pickle, warnings, zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation

from posebook.motion import (Channel, Motion, MotionError, find_asf, find_motions, fix_cmu_offsets,
    march, read_amc, read_archive, read_asf, read_bvh, read_deepmimic, read_many, read_motion,
    read_npz, read_smpl_codec, whole_file, write_bvh, write_motion, write_npz, write_smpl_codec)
from posebook.rotations import axis_angle_distance
from posebook.skeleton import Skeleton, get_skeleton
from posebook.take import channel_rotations, frame_rate, read_table

ORDERS = 'XYZ XZY YXZ YZX ZXY ZYX'.split()

def angle(a, b):
    "The largest angle between two sets of rotation vectors, radians"
    return float(axis_angle_distance(a.double(), b.double()).max())

@pytest.fixture(scope='module')
def walk(): return march()

# ---- round trips

@st.composite
def motions(draw):
    "A motion on a random tree, some of its rotations where Euler angles lock"
    J,T,seed = draw(st.integers(1, 9)),draw(st.integers(1, 4)),draw(st.integers(0, 2**16))
    g = np.random.default_rng(seed)
    parents = [-1]+[int(g.integers(0, j)) for j in range(1, J)]
    offsets = torch.tensor(g.normal(size=(J, 3))*.3).float()
    offsets[0] = 0
    R = Rotation.random(T*J, random_state=seed)
    if draw(st.booleans()):
        locked = g.uniform(-3, 3, size=(T*J, 3))
        locked[:,1] = g.choice([-1, 1], T*J)*math.pi/2
        R = Rotation.from_euler('ZYX', locked)
    poses = torch.tensor(R.as_rotvec()).view(T, J, 3)
    joints = tuple(f'j{j}' for j in range(J))
    return Motion(poses, torch.tensor(g.normal(size=(T, 3))), Skeleton('any', joints, tuple(parents),
        tuple(range(J)), offsets), draw(st.sampled_from([24., 29.97, 30., 60., 120.])))

@given(motions(), st.sampled_from(ORDERS), st.sampled_from([1., 100., 39.37]))
@settings(max_examples=60)
def test_bvh_round_trip(tmp_path_factory, m, order, scale):
    path = tmp_path_factory.getbasetemp()/'round.bvh'
    write_bvh(m, path, order=order, scale=scale)
    back = read_bvh(path, scale=1/scale)
    ids = [back.skeleton.index(j) for j in m.skeleton.joints]
    assert angle(back.poses[:,ids], m.poses) < 1e-4
    assert (back.trans-m.trans).abs().max() < 1e-5
    assert (back.joints()[:,ids]-m.joints()).abs().max() < 1e-4
    assert back.fps == pytest.approx(m.fps, rel=1e-9)

@pytest.mark.parametrize('skeleton', ['smplx', 'smplh', 'smpl'])
@pytest.mark.parametrize('write, read, suffix', [(write_npz, read_npz, 'npz'),
                                                 (write_smpl_codec, read_smpl_codec, 'smpl')])
def test_exact_round_trip(tmp_path, write, read, suffix, skeleton):
    if suffix=='smpl': pytest.importorskip('smplcodec', reason='smplcodec is not installed')
    m = march(skeleton=skeleton)
    m.meta |= dict(gender='female', betas=[.5, -1.25]+[0.]*8)
    write(m, tmp_path/f'a.{suffix}')
    back = read(tmp_path/f'a.{suffix}')
    assert torch.equal(back.poses, m.poses) and torch.equal(back.trans, m.trans)
    assert (back.skeleton.name, back.fps, back.meta['gender']) == (skeleton, 30., 'female')
    assert back.meta['betas'] == m.meta['betas'] and back.meta['up'] == 'y'

def test_up_survives_files(tmp_path, walk):
    z = walk.to_up('z')
    write_npz(z, tmp_path/'z.npz')
    assert read_npz(tmp_path/'z.npz').meta['up']=='z'
    assert (read_npz(tmp_path/'z.npz', up='y').joints()-walk.joints()).abs().max() < 1e-5
    write_smpl_codec(z, tmp_path/'z.smpl')
    assert (read_smpl_codec(tmp_path/'z.smpl').joints()-walk.joints()).abs().max() < 1e-5

def test_motion_error_survives_pickling():
    e = pickle.loads(pickle.dumps(MotionError('a.bvh', 'frames', 3, 2, 'cut off')))
    assert str(e)=='a.bvh: frames: expected 3, found 2; cut off' and e.found==2

@given(st.floats(1, 240), st.floats(1, 240), st.integers(0, 40))
@settings(max_examples=40)
def test_resample_keeps_the_time_span(old, new, frames):
    m = replace(march(frames), fps=old).resample(new)
    assert m.fps==new and torch.isfinite(m.poses).all()
    if frames > 1: assert 0 <= (frames-1)/old-(len(m)-1)/new < 1/new+1e-6

# ---- independent readers

@pytest.mark.parametrize('order', ORDERS+['X', 'ZY', ''])
def test_channels_agree_with_scipy(order):
    x = torch.tensor(np.random.default_rng(0).uniform(-7, 7, (50, 3)))
    channels = [Channel(i, 0, 'XYZ'.index(a), True) for i,a in enumerate(order)]
    q = channel_rotations(x, channels, 1)[:,0].numpy()
    want = Rotation.from_euler(order, x[:,:len(order)].numpy()) if order else Rotation.identity(50)
    assert (Rotation.from_quat(q[:,[1, 2, 3, 0]])*want.inv()).magnitude().max() < 1e-12

def same_as_bvhio(path, frames):
    "Compare positions of all joints with those of bvhio, in file units"
    bvhio = pytest.importorskip('bvhio', reason='bvhio is not installed')
    root = bvhio.readAsHierarchy(str(path))
    m = read_bvh(path, scale=1., fix_offsets=False)
    x,index = m.joints().numpy(),{n:j for j,n in enumerate(m.skeleton.joints)}
    for t in frames:
        root.loadPose(t)
        for joint,_,_ in root.layout():
            p = joint.PositionWorld
            assert np.abs(x[t,index[joint.Name]]-[p.x, p.y, p.z]).max() < 2e-3
    return m

def test_positions_agree_with_bvhio(tmp_path, walk):
    write_bvh(walk, tmp_path/'a.bvh', order='ZXY')
    same_as_bvhio(tmp_path/'a.bvh', (0, 17, 59))

@pytest.mark.parametrize('text, fps', [('.0083333', 120), ('0.0083333', 120), ('0.033333', 30),
    ('0.016667', 60), ('0.0333', 30), ('0.04', 25), ('1e-2', 100), ('0.033367', 29.97)])
def test_frame_rate(text, fps): assert frame_rate(text) == pytest.approx(fps, rel=1e-4)

@given(st.lists(st.sampled_from(['0', '-0', '-.5', '12.', '+3', '1e-3', '-7.25E+2', '0.1', '123456.789012',
    '99999999999999999999', '0.30000000000000004', '4.9e-324']), min_size=1, max_size=30),
    st.sampled_from([' ', '\n', '\t ', '\r\n']))
@settings(max_examples=60)
def test_numbers_agree_with_python(words, between):
    x = read_table(between.join(words), 1, len(words), 'x')
    assert x.tolist()==[[float(w) for w in words]]

# ---- spellings

BVH = '''HIERARCHY
ROOT Hips
{
\tOFFSET 0 0 0
\tCHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation
\tJOINT Leg
\t{
\t\tOFFSET 0 -90 0
\t\tCHANNELS 3 Zrotation Xrotation Yrotation
\t\tEnd Site
\t\t{
\t\t\tOFFSET 0 -80 0
\t\t}
\t}
}
MOTION
Frames: 2
Frame Time: .0083333
1 2 3 10 20 30 40 50 60
4 5 6 15 25 35 45 55 65
'''

def put(folder, name, content):
    "Write text or bytes"
    path = folder/name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path

@pytest.mark.parametrize('change', [
    lambda s: s.replace('\n', '\r\n'), lambda s: s.replace('\t', '    '), lambda s: s.lower(),
    lambda s: '\ufeff'+s, lambda s: '\n\n'+s+'\n\n', lambda s: s.replace(': ', ':\t'),
    lambda s: s.replace(' ', '  '), lambda s: s.replace('ROOT Hips\n{', 'ROOT Hips {'),
    lambda s: s.replace('End Site', 'END SITE'), lambda s: s.replace('10 20', '10\n20'),
    lambda s: s.replace('Frames: 2', 'Frames:2').replace('Time: ', 'Time:'),
    lambda s: s.replace('10 20', '1e1 2.0E+001')])
def test_bvh_spellings(tmp_path, change):
    a,b = read_bvh(put(tmp_path, 'a.bvh', BVH)),read_bvh(put(tmp_path, 'b.bvh', change(BVH)))
    assert torch.equal(a.poses, b.poses) and torch.equal(a.trans, b.trans) and a.fps==b.fps==120

def test_bvh_positions_on_every_joint(tmp_path):
    text = BVH.replace('CHANNELS 3 Zr', 'CHANNELS 6 Xposition Yposition Zposition Zr')
    text = text.replace(' 40 50', ' 0 -90 0 40 50').replace(' 45 55', ' 0 -90.5 0 45 55')
    a,b = read_bvh(put(tmp_path, 'a.bvh', BVH)),read_bvh(put(tmp_path, 'b.bvh', text), scale=.01)
    assert torch.equal(a.poses, b.poses) and torch.equal(a.trans, b.trans)
    assert a.meta['stray']==0 and b.meta['stray']==pytest.approx(.005)
    assert b.skeleton.offsets[1,1]==pytest.approx(-.9, abs=.006) and b.meta['folded']==[]

def test_bvh_moving_hips_above_a_root(tmp_path):
    text = BVH.replace('CHANNELS 3 Zr', 'CHANNELS 6 Xposition Yposition Zposition Zr')
    text = text.replace(' 40 50', ' 0 90 0 40 50').replace(' 45 55', ' 30 90 0 45 55')
    m = read_bvh(put(tmp_path, 'a.bvh', text), scale=.01)
    assert m.skeleton.joints==('Leg',) and m.meta['folded']==['Hips']
    R = Rotation.from_euler('ZYX', [[10, 20, 30], [15, 25, 35]], degrees=True)
    want = np.array([[1, 2, 3], [4, 5, 6]])+R.apply([[0, 90, 0], [30, 90, 0]])
    assert np.abs(m.trans.numpy()*100-want).max() < 1e-4
    leg = R*Rotation.from_euler('ZXY', [[40, 50, 60], [45, 55, 65]], degrees=True)
    assert angle(m.poses[:,0], torch.tensor(leg.as_rotvec())) < 1e-6

@pytest.mark.parametrize('size, unit, scale', [(1., 'centimetres', .01), (.01, 'metres', 1.),
    (10., 'millimetres', .001), (1/2.54, 'inches', .0254)])
def test_bvh_units(tmp_path, walk, size, unit, scale):
    write_bvh(walk, tmp_path/'a.bvh', scale=100*size)
    m = read_bvh(tmp_path/'a.bvh')
    assert (m.meta['unit'], m.meta['scale'])==(unit, scale)
    assert (m.trans-walk.trans).abs().max() < 1e-4

def test_bvh_no_human_unit_is_said(tmp_path, walk):
    write_bvh(walk, tmp_path/'a.bvh', scale=5)
    with pytest.warns(UserWarning, match='a.bvh: a rest pose of .* give `scale`'):
        assert read_bvh(tmp_path/'a.bvh').meta['unit']=='centimetres, assumed'

ASF = ''':version 1.10
:units
  mass 1.0
  length 0.45
  angle deg
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 1 2 3
   orientation 0 0 0
:bonedata
  begin
     id 1
     name thigh
     direction 0 -1 0
     length 8
     axis 10 20 30 ZXY
    dof rz rx ry
  end
  begin
     id 2
     name shin
     direction 0 -1 0
     length 7
     axis 0 0 20 XYZ
    dof rx
  end
:hierarchy
  begin
    root thigh
    thigh shin
  end
'''
AMC = ':FULLY-SPECIFIED\n:DEGREES\n' + ''.join(
    f'{t}\nroot 1 2 {t} 10 20 30\nthigh {t} 50 60\nshin 45\n' for t in (1, 2, 3))

@pytest.fixture
def acclaim(tmp_path):
    put(tmp_path, '01.asf', ASF)
    return put(tmp_path, '01_01.amc', AMC)

def test_amc_agrees_with_scipy(acclaim):
    m,turn = read_amc(acclaim),lambda o,*a: Rotation.from_euler(o, a, degrees=True)
    root = turn('xyz', 10, 20, 30)              # lower case: about fixed axes, x first
    C = turn('zxy', 30, 10, 20)                 # order ZXY: about z first
    thigh = C*turn('zxy', 2, 50, 60)*C.inv()
    K = turn('z', 20)
    shin = K*turn('x', 45)*K.inv()
    want = torch.tensor(np.stack([r.as_rotvec() for r in (root, thigh, shin)]))
    assert angle(m.poses[1], want) < 1e-6
    assert np.allclose(m.trans[1]/.0254*.45, [2, 4, 5], atol=1e-5)
    assert np.allclose(m.skeleton.offsets[2]/.0254*.45, [0, -8, 0], atol=1e-5)

@pytest.mark.parametrize('change', [lambda a,s: (a.replace('\n', '\r\n'), s.replace('\n', '\r\n')),
    lambda a,s: (a.replace(':DEGREES', ':degrees'), s.upper().replace('ROOT', 'root').replace(
        'THIGH', 'thigh').replace('SHIN', 'shin')),
    lambda a,s: ('# by hand\n'+a.replace('45', '4.5e+001'), s.replace('8\n', '8   # long\n'))])
def test_acclaim_spellings(tmp_path, acclaim, change):
    a,s = change(AMC, ASF)
    put(tmp_path, 'b.asf', s)
    m,n = read_amc(acclaim),read_amc(put(tmp_path, 'b_1.amc', a), asf=tmp_path/'b.asf')
    assert torch.equal(m.poses, n.poses) and torch.equal(m.trans, n.trans)

def test_radians(tmp_path, acclaim):
    rows = [l.split() for l in AMC.replace(':DEGREES', ':RADIANS').splitlines()]
    rad = lambda w,n: w[:n]+[repr(math.radians(float(v))) for v in w[n:]]
    text = '\n'.join(' '.join(rad(w, 4 if w[0]=='root' else 1)) for w in rows)
    n = read_amc(put(tmp_path, '01_02.amc', text))
    assert angle(read_amc(acclaim).poses, n.poses) < 1e-6

def test_asf_is_found_by_subject(tmp_path, acclaim):
    put(tmp_path, '02.asf', ASF)
    assert find_asf(acclaim).name=='01.asf' and read_amc(acclaim).meta['asf_is_own']
    with pytest.raises(MotionError, match='03.asf or a single .asf beside it'):
        find_asf(put(tmp_path, '03_01.amc', AMC))
    assert not read_amc(tmp_path/'03_01.amc', asf=tmp_path/'02.asf').meta['asf_is_own']

# ---- the SMPL family

X = np.random.default_rng(1).normal(size=(6, 165)).astype('f4')
HANDS = dict(hands=X[:,75:165], left=X[:,75:120], right=X[:,120:165])

@pytest.mark.parametrize('data, name', [
    (dict(poses=X), 'smplx'), (dict(poses=X.reshape(6, 55, 3)), 'smplx'),
    (dict(poses=X.astype('f8')), 'smplx'), (dict(fullpose=X), 'smplx'),
    (dict(root_orient=X[:,:3], pose_body=X[:,3:66], pose_jaw=X[:,66:69], pose_eye=X[:,69:75],
          pose_hand=HANDS['hands']), 'smplx'),
    (dict(global_orient=X[:,None,:3], body_pose=X[:,3:66], jaw_pose=X[:,66:69],
          leye_pose=X[:,69:72], reye_pose=X[:,72:75], left_hand_pose=HANDS['left'],
          right_hand_pose=HANDS['right']), 'smplx'),
    (dict(global_orient=X[:,:3], body_pose=X[:,3:66].reshape(6, 21, 3), jaw_pose=X[:,66:69],
          leye_pose=X[:,69:72], reye_pose=X[:,72:75], lhand_pose=HANDS['left'],
          rhand_pose=HANDS['right']), 'smplx'),
    (dict(poses=X[:,:156]), 'smplh'), (dict(poses=X[:,:72]), 'smpl'),
    (dict(global_orient=X[:,:3], body_pose=X[:,3:72]), 'smpl'),
    (dict(global_orient=X[:,:3], poses=X[:,3:72]), 'smpl')])
def test_spellings_of_a_pose(tmp_path, data, name):
    np.savez(tmp_path/'a.npz', **data, transl=X[:,:3])
    m = read_npz(tmp_path/'a.npz')
    assert m.skeleton.name==name
    J = len(m.skeleton)
    assert np.array_equal(m.poses.numpy().reshape(6, -1), X[:,:3*J])
    assert np.array_equal(m.trans.numpy(), X[:,:3])

@pytest.mark.parametrize('data, first', [(dict(poses=X[:,:66]), 0), (dict(poses=X[:,3:66]), 1),
    (dict(pose_body=X[:,3:66]), 1), (dict(root_orient=X[:,:3], pose_body=X[:,3:66]), 0),
    (dict(root_orient=X[:,:3], poses=X[:,3:66]), 0)])
def test_body_only(tmp_path, data, first):
    np.savez(tmp_path/'a.npz', **data)
    m = read_npz(tmp_path/'a.npz')
    assert np.array_equal(m.poses[:,first:22].numpy().reshape(6, -1), X[:,3*first:66])
    assert not m.poses[:,22:].any() and not m.poses[:,:first].any()
    assert m.meta['given']==['root', 'body'][first:] and m.meta['trans']=='none in the file'

@pytest.mark.parametrize('key', ['mocap_frame_rate', 'mocap_framerate', 'fps'])
@pytest.mark.parametrize('value', [59.94, np.array(59.94), np.array([59.94])])
def test_spellings_of_the_rest(tmp_path, key, value):
    np.savez(tmp_path/'a.npz', poses=X, trans=X[:,:3], gender=np.array(b'male'),
             betas=np.ones((6, 10)), **{key:value})
    m = read_npz(tmp_path/'a.npz')
    assert (m.fps, m.meta['fps_from'], m.meta['gender'])==(59.94, key, 'male')
    assert m.meta['betas']==[1.]*10 and m.meta['up']==('z' if 'mocap' in key else None)
    assert read_npz(tmp_path/'a.npz', fps=10).fps==10

def test_archive(tmp_path):
    np.savez(tmp_path/'a.npz', poses=X[:,:66].reshape(6, 22, 3), sequence=[2, 0, 0, 2, 2, 0],
             name=['a', 'b', 'c'], fps=[10, 20, 30], trans=X[:,:3])
    a,c = read_archive(tmp_path/'a.npz')
    assert [(m.name, len(m), m.fps) for m in (a, c)]==[('a', 3, 10), ('c', 3, 30)]
    assert np.array_equal(c.trans.numpy(), X[[0, 3, 4],:3])
    assert len(read_many(tmp_path)[0])==2

# ---- damaged files

def damaged(folder):
    "(file, words of the complaint) of everything that can be wrong with a file"
    bvh = lambda name,old,new,says: (put(folder, name, BVH.replace(old, new)), says)
    yield put(folder, 'cut1.bvh', BVH[:120]), 'headers: expected HIERARCHY, MOTION'
    yield put(folder, 'cut2.bvh', BVH[:BVH.index('Frame Time')]), 'cut off'
    yield put(folder, 'cut3.bvh', BVH[:BVH.index('4 5 6')]), 'expected 2 as the header says, found 1'
    yield put(folder, 'cut4.bvh', BVH[:-12]), 'found 1 and a part of 5 numbers; the file is cut off'
    yield put(folder, 'empty.bvh', ''), 'an empty file'
    yield put(folder, 'blank.bvh', ' \n\n'), 'an empty file'
    yield put(folder, 'binary.bvh', bytes(range(256))*9), 'binary data'
    yield put(folder, 'text.bvh', 'hello'), 'found none of them'
    yield bvh('nan.bvh', '50', 'nan', 'frame 0, channel Leg.Xrotation: expected a finite number, found nan')
    yield bvh('inf.bvh', '5 6 ', '5 -inf ', 'frame 1, channel Hips.Zposition')
    yield bvh('word.bvh', '50', 'five', "line 1 of the motion: expected numbers, found 'five'")
    yield bvh('comma.bvh', '50', '5,0', "line 1 of the motion: expected numbers, found '5,0'")
    yield bvh('narrow.bvh', ' 60', '', 'expected 9 numbers a frame as the skeleton says, found 8')
    yield bvh('more.bvh', 'Frames: 2', 'Frames: 3', 'expected 3 as the header says, found 2; the file is')
    yield bvh('less.bvh', 'Frames: 2', 'Frames: 1', 'expected 1 as the header says, found 2')
    yield bvh('huge.bvh', 'Frames: 2', 'Frames: 9999999999', 'expected 9999999999 as the header says')
    yield bvh('none.bvh', 'Frames: 2', 'Frames: 0', 'expected one at least, found 0')
    yield bvh('minus.bvh', 'Frames: 2', 'Frames: -2', 'expected one at least, found -2')
    yield bvh('many.bvh', 'Frames: 2', 'Frames: two', "expected a whole number, found 'two'")
    yield bvh('time.bvh', '.0083333', '0', "Frame Time: expected seconds above zero, found '0'")
    yield bvh('wide.bvh', 'CHANNELS 3', 'CHANNELS 4', 'CHANNELS of Leg: expected 4 of Xposition')
    yield bvh('giant.bvh', 'CHANNELS 3', 'CHANNELS 999999999999', 'CHANNELS of Leg')
    yield bvh('odd.bvh', 'CHANNELS 3 Zr', 'CHANNELS 3 Wr', 'CHANNELS of Leg')
    yield bvh('offset.bvh', '0 -90 0', '0 -90', 'OFFSET of Leg: expected 3 numbers')
    yield bvh('bad.bvh', '0 -90 0', '0 nan 0', 'OFFSET of Leg')
    yield bvh('brace.bvh', '\t}\n}', '\t}', 'a } for every {')
    yield bvh('key.bvh', '\tOFFSET 0 -90', '\tOFSET 0 -90', "or }, found 'OFSET'")
    yield bvh('twice.bvh', 'Leg', 'Hips', 'joint names repeat')
    yield put(folder, 'roots.bvh', BVH.replace('MOTION', 'ROOT a { OFFSET 0 0 0 CHANNELS 0 }\nMOTION')
              ), 'expected one ROOT, found 2'
    put(folder, '01.asf', ASF)
    amc = lambda name,old,new,says: (put(folder, name, AMC.replace(old, new)), says)
    yield put(folder, '01_2.amc', AMC[:-9]), 'frame 3: expected its number and the 3 bones'
    yield put(folder, '01_3.amc', ':FULLY-SPECIFIED\n:DEGREES\n'), 'expected one at least, found none'
    yield amc('01_4.amc', 'shin', 'shine', 'bones: expected those of the ASF, found shine')
    yield amc('01_5.amc', 'shin 45', 'shin 45 1', 'bone shin: expected 1 numbers (rx), found 2')
    yield amc('01_6.amc', 'thigh 2', 'thigh nan', 'frame 1, channel thigh.Zrotation')
    yield amc('01_7.amc', '\n3\n', '\n4\n', 'frame 3')
    yield amc('01_8.amc', 'thigh 2', 'thigh x', "line 2 of the motion: expected numbers, found 'x'")
    yield put(folder, 'clip.txt', '{"Frames": [[1, 2]]}'), 'frame 0: expected the 44 numbers'
    yield put(folder, 'half.txt', '{"Frames": [[1, 2'), 'expected JSON'
    yield put(folder, 'deep.txt', '{"Frames": '+'['*100_000), 'expected JSON'
    yield put(folder, 'none.txt', '{"Frames": []}'), 'a list of frames'
    yield put(folder, 'words.txt', json.dumps(dict(Frames=[['a']*44]))), 'expected numbers'
    yield put(folder, 'nan.txt', json.dumps(dict(Frames=[[math.nan]*44]))), 'a finite number'
    yield from damaged_arrays(folder)

def npz(folder, file, /, **data):
    "An npz, and its path"
    np.savez(folder/file, **data)
    return folder/file

def damaged_arrays(folder):
    "The same for npz"
    whole = npz(folder, 'good.npz', poses=X, trans=X[:,:3]).read_bytes()
    yield put(folder, 'empty.npz', b''), 'a zip of arrays'
    yield put(folder, 'junk.npz', bytes(range(256))*4), 'a zip of arrays'
    yield put(folder, 'cut.npz', whole[:-100]), 'a zip of arrays'
    yield put(folder, 'flip.npz', whole[:400]+bytes(8)+whole[408:]), 'a zip of arrays'
    yield put(folder, 'pickled.npz', pickle.dumps([1, 2])), 'a zip of arrays'
    yield npz(folder, 'objects.npz', poses=np.array([None, 1], dtype=object)), "key 'poses': expected numbers"
    yield npz(folder, 'extra.npz', poses=X, x=np.array({}, dtype=object)), "key 'x': expected numbers or text, found a pickle"
    yield npz(folder, 'keys.npz', betas=X), 'pose_body'
    yield npz(folder, 'ten.npz', poses=X[:,:30]), "joints in key 'poses': expected 21, 22, 24, 52 or 55, found 10"
    yield npz(folder, 'matrix.npz', poses=np.zeros((4, 55, 3, 3))), 'numbers of shape (T, 3J)'
    yield npz(folder, 'text.npz', poses=np.array(['a'])), 'numbers of shape'
    yield npz(folder, 'zero.npz', poses=X[:0]), 'T > 0, found float32 (0, 165)'
    yield npz(folder, 'nan.npz', poses=np.where(X > 2, np.nan, X)), 'expected finite numbers'
    yield npz(folder, 'trans.npz', poses=X, trans=X[:3,:3]), "key 'trans': expected shape (6, 3)"
    yield npz(folder, 'fps.npz', poses=X, fps='fast'), "key 'fps': expected frames a second, found 'fast'"
    yield npz(folder, 'pca.npz', body_pose=X[:,:63], left_hand_pose=X[:,:12]), 'PCA'
    yield npz(folder, 'seq.npz', poses=X, sequence=[0]*5, name=['a'], fps=30), "key 'sequence'"
    yield npz(folder, 'noname.npz', poses=X, sequence=[0]*6), 'no fps, no name'
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(shape=(10**9, 165), fortran_order=False, descr='<f8'))
    with zipfile.ZipFile(folder/'claim.npz', 'w') as z: z.writestr('poses.npy', header.getvalue()+bytes(64))
    yield folder/'claim.npz', "key 'poses': expected 1320000000000 bytes"
    with zipfile.ZipFile(folder/'other.npz', 'w') as z: z.writestr('poses.pkl', pickle.dumps([1]))
    yield folder/'other.npz', "key 'poses.pkl': expected an array"

def test_damaged_files_get_one_sentence(tmp_path):
    cases = list(damaged(tmp_path))
    for path,says in cases:
        with pytest.raises(MotionError) as e: read_motion(path)
        assert says in str(e.value), (path.name, str(e.value))
        assert str(e.value).startswith(str(path)) and '\n' not in str(e.value)
    motions,bad = read_many([p for p,_ in cases]+[tmp_path/'good.npz'], on_bad='skip')
    assert [m.name for m in motions]==['good'] and len(bad)==len(cases)
    with pytest.warns(UserWarning, match=f'{len(cases)} of {len(cases)+1} motion files were skipped'):
        read_many([p for p,_ in cases]+[tmp_path/'good.npz'])

@pytest.mark.parametrize('old, new, says', [
    (':hierarchy', '', 'no hierarchy'), ('root thigh', 'root knee', 'no place for knee'),
    ('thigh shin', 'shin thigh', 'each bone of :bonedata once'), ('length 8', 'length', 'length of thigh'),
    ('direction 0 -1 0', 'direction 0 x 0', 'direction of thigh'), ('ZXY', 'ZXX', 'an order of XYZ'),
    ('length 0.45', 'length 0', 'more than 0'), ('dof rx', 'dof l', "expected 1 numbers")])
def test_damaged_asf(tmp_path, old, new, says):
    put(tmp_path, '01.asf', ASF.replace(old, new))
    with pytest.raises(MotionError) as e: read_amc(put(tmp_path, '01_1.amc', AMC))
    if says != 'expected 1 numbers': assert says in str(e.value)

@pytest.mark.parametrize('path, says', [('no.bvh', 'No such file'), ('no.npz', 'No such file'),
    ('no.amc', 'No such file'), ('no.txt', 'No such file'), ('a.asf', 'read with its .amc'), ('', "expected .bvh")])
def test_what_is_no_file(tmp_path, path, says):
    put(tmp_path, 'a.asf', ASF); put(tmp_path, 'b.asf', ASF)
    if not path: put(tmp_path, 'a.fbx', 'x')
    with pytest.raises(MotionError, match=says): read_motion(tmp_path/(path or 'a.fbx'))

def test_folders(tmp_path):
    with pytest.raises(MotionError, match='found none'): find_motions(tmp_path)
    put(tmp_path, 'LICENCE.txt', 'free')
    with pytest.raises(MotionError, match='found 1 other files'): read_many(tmp_path)
    (tmp_path/'deep/er').mkdir(parents=True)
    put(tmp_path/'deep/er', 'A.BVH', BVH); put(tmp_path/'deep', '.hidden.bvh', BVH)
    assert [p.name for p in find_motions(tmp_path)]==['A.BVH']

SEEDS = dict(bvh=BVH, amc=AMC, txt=json.dumps(dict(Loop='wrap', Frames=[[.03, 0, 1, 0]+([1.]+[0.]*3)*4
    +[.1]+([1.]+[0.]*3)*2+[.1]+[1.]+[0.]*3+[.1]+([1.]+[0.]*3)*2+[.2]]*2)))

@given(st.sampled_from(['bvh', 'amc', 'txt', 'asf', 'npz']), st.integers(0, 10**6),
       st.sampled_from([b'', b'\xff', b'{', b'}', b'nan', b' 7 ', b'-', b'\n', b'e999', b':root']),
       st.integers(0, 40))
@settings(max_examples=300)
def test_any_damage_gives_a_motion_or_a_motion_error(tmp_path_factory, kind, at, insert, delete):
    folder = tmp_path_factory.getbasetemp()/'fuzz'
    folder.mkdir(exist_ok=True)
    seeds = {**SEEDS, 'asf':ASF}
    whole = seeds[kind].encode() if kind in seeds else npz(folder, 'seed.npz', poses=X[:2]).read_bytes()
    at %= len(whole)
    put(folder, '01.asf', ASF)
    path = put(folder, '01.asf' if kind=='asf' else f'01_x.{kind}', whole[:at]+insert+whole[at+delete:])
    if kind=='asf': path = put(folder, '01_x.amc', AMC)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning) # a scale that had to be assumed
        try: m = read_motion(path)
        except MotionError: return
    assert torch.isfinite(m.poses).all() and torch.isfinite(m.joints()).all() and len(m) > 0

# ---- writing

@pytest.mark.parametrize('suffix, hook', [('bvh', 'savetxt'), ('npz', 'savez_compressed')])
def test_nothing_is_half_written(tmp_path, walk, monkeypatch, suffix, hook):
    path = put(tmp_path, f'a.{suffix}', 'before')
    def fail(f, *args, **kwargs): raise OSError('disk full')
    monkeypatch.setattr(np, hook, fail)
    with pytest.raises(OSError, match='disk full'): write_motion(walk, path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()]==[(path.name, 'before')]

def test_nothing_is_written_that_cannot_be_read(tmp_path, walk):
    rig = replace(walk, skeleton=replace(walk.skeleton, name='mine'))
    for suffix in ('npz', 'smpl'):
        with pytest.raises(MotionError, match='retarget'): write_motion(rig, tmp_path/f'a.{suffix}')
        with pytest.raises(MotionError, match='one at least'): write_motion(walk[:0], tmp_path/f'a.{suffix}')
    with pytest.raises(MotionError, match='one at least'): write_motion(walk[:0], tmp_path/'a.bvh')
    with pytest.raises(MotionError, match='rest offsets'):
        write_bvh(Motion(torch.zeros(1, 17, 3), torch.zeros(1, 3), 'coco17', 30), tmp_path/'a.bvh')
    assert not list(tmp_path.iterdir())

def test_replacing_makes_folders(tmp_path):
    with whole_file(tmp_path/'a/b/c.txt') as p: p.write_text('x')
    assert [q.name for q in (tmp_path/'a/b').iterdir()]==['c.txt']

# ---- real recordings

@pytest.fixture(scope='module')
def cmu(real_data):
    "The folder of CMU recordings; the test is skipped where there is none"
    if not (real_data/'cmu').is_dir(): pytest.skip('no CMU recordings in POSEBOOK_DATA')
    return real_data/'cmu'

def test_bvh_and_amc_of_one_take_agree(cmu):
    b,a = read_bvh(cmu/'bvh_mb/01_01.bvh'),read_amc(cmu/'amc/01_01.amc')
    assert (len(b), len(a), b.fps, a.fps)==(2752, 2751, 120, 120)
    assert b.meta['tpose_first'] and (b.skeleton.name, a.skeleton.name)==('cmu_mb', 'cmu_amc')
    assert math.degrees(angle(b.poses[1:], a.poses)) < .01
    assert (b.trans[1:]-a.trans).abs().max() < 1e-5
    assert (b.joints()[1:]-a.joints()).norm(dim=-1).max() < 1e-4
    raw = read_bvh(cmu/'bvh_mb/01_01.bvh', fix_offsets=False)
    assert (raw.joints()[1:]-a.joints()).norm(dim=-1).max() > .1

def test_real_positions_agree_with_bvhio(cmu):
    m = same_as_bvhio(cmu/'bvh_mb/02_01.bvh', (0, 100, 342))
    assert len(fix_cmu_offsets(m.skeleton)[1])==5+2

def test_every_real_file_reads(cmu):
    motions,bad = read_many([cmu/'bvh_daz/indian', cmu/'bvh_mb', cmu/'amc/88_01.amc'], on_bad='raise')
    assert not bad and len(motions)==8
    for m in motions:
        height = m.joints()[...,1].amax(1)-m.joints()[...,1].amin(1)
        assert .5 < height.median() < 2.1 and m.skeleton.name in ('cmu_daz', 'cmu_mb', 'cmu_amc')

def test_real_archive(cmu):
    motions = read_archive(cmu/'cmu_poses22.npz')
    assert len(motions)==115 and sum(map(len, motions))==37145
    assert {m.fps for m in motions}=={30.} and motions[0].name=='expmap/test/basketball/basketball_1'

def test_all_clips_of_pybullet():
    pybullet_data = pytest.importorskip('pybullet_data', reason='pybullet is not installed')
    motions,bad = read_many(pybullet_data.getDataPath()+'/data/motions', on_bad='skip')
    assert [b.path.endswith('laikago_walk.txt') for b in bad]==[True]
    human = {m.name:m for m in motions if m.name.startswith('humanoid3d')}
    assert len(human)==15
    walk = human['humanoid3d_walk']
    x,s = walk.joints(),get_skeleton('deepmimic')
    assert walk.trans[-1,2]-walk.trans[0,2] > .5       # it walks the way it faces
    assert (x[:,s.index('left_hip'),0] > x[:,s.index('right_hip'),0]).all()
    knee = walk.poses[:,s.index('left_knee')]
    assert knee[:,0].min() > -.01 and knee[:,1:].abs().max()==0   # and bends its knees backwards

def test_asf_of_the_cmu(cmu):
    asf = read_asf(cmu/'amc/01.asf')
    assert asf.unit=='1/0.45 inch' and asf.skeleton.joints==get_skeleton('cmu_amc').joints
    assert asf.skeleton.parents==get_skeleton('cmu_amc').parents

def test_deepmimic_is_not_read_as_another_body(tmp_path):
    path = put(tmp_path, 'a.json', SEEDS['txt'])
    assert read_motion(path).skeleton.name=='deepmimic' and len(read_deepmimic(path))==2
