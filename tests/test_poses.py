"Pose sets, collections, splits: oracles, bad input, killed runs, other processes, real files."
import json, os, signal, subprocess, sys, time, warnings
from pathlib import Path

import numpy as np, pytest, torch
from hypothesis import given, strategies as st

from posebook.collection import Reading, cached_build, join, list_sources, sample_frames
from posebook.motion import Motion, write_npz
from posebook.poses import (IndexBatches, PoseDataModule, PoseSet, Split, assert_disjoint, deal,
                            embedded_data)
from posebook.poseset import ArrayWriter, is_pose_set, trial_key
from posebook.rotations import axis_angle_distance
from posebook.skeleton import get_skeleton, mirror_joints, mirror_pose

@pytest.fixture(scope='module')
def clips(): return embedded_data()

def walk(n, seed=0, step=.05):
    "A made-up motion of the 22 body joints"
    x = np.zeros((n,55,3), 'f4')
    x[:,:22] = np.random.default_rng(seed).normal(size=(n,22,3)).cumsum(0)*step
    return x

def write(folder, fps=30., **made):
    folder.mkdir(parents=True, exist_ok=True)
    for n,x in made.items():
        m = Motion(torch.from_numpy(x), torch.zeros(len(x),3), get_skeleton('smplx'), fps, n)
        write_npz(m, folder/f'{n}.npz')
    return folder

def quiet_build(*args, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return PoseSet.build(*args, **kw)

# ---- the array on disk

@pytest.mark.parametrize('sizes', [(1,), (3,1,96), (9999,2), (99_999,1)])
def test_header_grows(tmp_path, sizes):
    w = ArrayWriter(tmp_path/'a.npy', (3,))
    blocks = [np.full((n,3), i+1., 'f4') for i,n in enumerate(sizes)]
    for b in blocks: w.add(b)
    w.close()
    x = np.load(tmp_path/'a.npy', mmap_mode='r')
    assert np.array_equal(x, np.concatenate(blocks)) and x.offset%64==0

def test_views_are_views(clips, tmp_path):
    s = clips.save(tmp_path/'s')
    part = s.subset(s.sequence==3)
    assert np.shares_memory(part.poses, s.data) and part.data is s.data
    i = np.array([5,-1,0])
    assert np.array_equal(s.mirrored().mirrored()[i], clips.mirrored().mirrored()[i])
    assert s[4:4].shape==(0,55,3) and s[np.int64(2)].shape==(55,3)
    s[0][:] = 7                                        # what is fetched is a copy
    assert not (s[0]==7).any()

def test_mirror_agrees_with_the_skeleton(clips):
    twins = clips.mirrored().subset(np.arange(len(clips), 2*len(clips)))
    x = torch.from_numpy(clips[:])
    assert np.allclose(twins[:], mirror_pose(x, 'smplx').numpy(), atol=1e-6)
    flipped = mirror_joints(torch.from_numpy(clips.joints()), 'smplx')
    assert np.allclose(twins.joints(), flipped.numpy(), atol=1e-5)

def edit(**new): return 'index.json', lambda index: index|new
def first(index, **new): return [index['sequences'][0]|new, *index['sequences'][1:]]

BROKEN = {
    'not json': ('index.json', '{'), 'a list': ('index.json', '[]'), 'empty': ('index.json', ''),
    'other version': edit(version=99), 'other format': edit(format='x'),
    'no sequences': edit(sequences=[]),
    'no fps': edit(fps=0), 'null': edit(sequences=None), 'fewer poses': edit(poses=5),
    'bad skips': edit(skipped=[dict(a=1)]),
    'no key': edit(sequences=[dict(name='a', start=0, stop=70)]),
    'a gap': ('index.json', lambda d: d|dict(sequences=first(d, stop=3))),
    'short array': ('poses.npy', b'\x93NUMPY'), 'empty array': ('poses.npy', b''),
    'text': ('trans.npy', b'hello'), 'other array': ('trans.npy', np.zeros((4,3),'f4')),
    'doubles': ('poses.npy', np.zeros((70,55,3))), 'objects': ('trans.npy', np.array([{}]*70)),
    'not finite': ('poses.npy', np.full((70,55,3), np.nan, 'f4'))}

@pytest.mark.parametrize('what', BROKEN)
def test_damaged_set(tmp_path, what):
    s = PoseSet.from_arrays(walk(70), sequence=np.arange(70)//35).save(tmp_path/'s')
    name,new = BROKEN[what]
    file = s.folder/name
    if callable(new): new = json.dumps(new(json.loads(file.read_text())))
    file.unlink()
    if isinstance(new, np.ndarray): np.save(file, new)
    elif isinstance(new, bytes): file.write_bytes(new)
    else: file.write_text(new)
    with pytest.raises(ValueError, match='.') as e: PoseSet.load(s.folder)
    assert '\n' not in str(e.value) and name in str(e.value)

KILLED = """
import sys, time, numpy as np
from posebook.poseset import PoseWriter, describe
with PoseWriter(sys.argv[1], 30., overwrite=True) as w:
    x = np.zeros((5000,55,3), 'f4')
    for i in range(10**6):
        w.add(x, x[:,0], describe(str(i), x))
        if i==3: print('writing', flush=True)
        time.sleep(.01)
"""

@pytest.mark.skipif(os.name=='nt', reason='needs SIGKILL')
def test_killed_run_leaves_the_old_set(tmp_path):
    old = PoseSet.from_arrays(walk(10)).save(tmp_path/'s')
    command = [sys.executable, '-c', KILLED, str(tmp_path/'s')]
    p = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline()=='writing\n'
    p.send_signal(signal.SIGKILL); p.wait()
    assert PoseSet.load(tmp_path/'s').fingerprint==old.fingerprint
    left = [q.name for q in tmp_path.iterdir() if q.name!='s']
    assert len(left)==1 and left[0].startswith('.s.') and not is_pose_set(tmp_path/left[0])
    assert [q.name for q in list_sources(tmp_path)[0]]==['s']  # what was left is not taken for data

def test_two_writers_one_name(tmp_path):
    made = PoseSet.from_arrays(walk(10)).save(tmp_path/'s')
    (tmp_path/'other').mkdir(); (tmp_path/'other'/'thesis.txt').write_text('x')
    with pytest.raises(ValueError, match='not a pose set'):
        made.save(tmp_path/'other', overwrite=True)
    assert (tmp_path/'other'/'thesis.txt').exists()

# ---- arrays in memory

@pytest.mark.parametrize('x, text', [
    (np.zeros((0,55,3)), 'at least one pose'), (np.zeros((5,10,3)), r'found \(5, 10, 3\)'),
    (np.zeros((5,165)), 'expected shape'),
    (np.zeros((55,3)), 'expected shape'),
    (np.full((5,55,3), np.inf), '5 of 5 poses are not finite')])
def test_bad_arrays(x, text):
    with pytest.raises(ValueError, match=text): PoseSet.from_arrays(x)

@pytest.mark.parametrize('kw, text', [
    (dict(trans=np.zeros((4,3))), 'trans and sequence'), (dict(names=[]), 'names'),
    (dict(trans=np.full((5,3), np.nan)), 'finite'), (dict(sequence=[0]), 'trans and sequence'),
    (dict(sequence=[0,0,1,0,1]), 'ascending')])
def test_bad_companions(kw, text):
    with pytest.raises(ValueError, match=text): PoseSet.from_arrays(np.zeros((5,55,3)), **kw)

def test_one_pose(tmp_path):
    s = PoseSet.from_arrays(walk(1))
    assert len(s.save(tmp_path/'s').mirrored())==2 and len(s.thin(.1))==1
    assert s.joints().shape==(1,55,3)
    assert len(s.resampled(60.))==1
    with pytest.raises(ValueError, match='found 1'): s.split()

# ---- names

@pytest.mark.parametrize('a, b', [
    (('01_01','x/01_01.bvh'), ('01_01','y/amc/01_01.amc')),
    (('1_1',''), ('subjects/01/01_01_stageii','a.npz')),
    (('mb/01_01','cmu_poses22.npz'), ('01_01','cmu/bvh_mb/01_01.bvh')),
    (('daz/salsa/01','z.npz'), ('01','bvh_daz/salsa/01.bvh')),
    (('kick','a/BVH/kick.bvh'), ('kick','b/npz/kick.npz')),
    (('walk','clips.npz'), ('humanoid3d_walk','motions/humanoid3d_walk.txt'))])
def test_same_trial(a, b): assert trial_key(*a)==trial_key(*b)

@pytest.mark.parametrize('a, b', [
    (('01','salsa/01.bvh'), ('01','indian/01.bvh')), (('01_01','01_01.bvh'), ('01_02','01_02.bvh')),
    (('walk','KIT/3/walk.npz'), ('walk','KIT/4/walk.npz')), (('a','set.npz'), ('b','set.npz'))])
def test_other_trial(a, b): assert trial_key(*a)!=trial_key(*b)

# ---- reading a mixture

BAD = {'empty.bvh': b'', 'cut.bvh': b'HIERARCHY\nROOT Hips\n{\n OFFSET 0 0 0\n CHANNELS 6 Xpos',
       'noise.npz': bytes(range(256))*4, 'binary.bvh': b'\0'*100,
       'text.amc': b'hello', 'text.smpl': b'hello'}

def spoil(folder):
    "Every kind of broken file"
    for n,b in BAD.items(): (folder/n).write_bytes(b)
    np.savez(folder/'pickled.npz', poses=np.array([{}], dtype=object))
    np.savez(folder/'ten_joints.npz', poses=np.zeros((5,30)), mocap_frame_rate=30.)
    x = walk(20).reshape(20,-1); x[3,4] = np.nan
    np.savez(folder/'nan.npz', poses=x, trans=np.zeros((20,3)), mocap_frame_rate=30.)
    return {*BAD,'pickled.npz','ten_joints.npz','nan.npz'}

def test_broken_files_are_named(tmp_path):
    write(tmp_path, good=walk(50))
    bad = spoil(tmp_path)
    (tmp_path/'README.txt').write_text('not motion, and not meant to be')
    with pytest.warns(UserWarning, match=f'skipped {len(bad)}'):
        s = PoseSet.build(tmp_path, tmp_path/'set')
    assert s.names==['good'] and {Path(b.path).name for b in s.skipped}==bad
    assert all(b.reason and '\n' not in b.reason for b in s.skipped)

def test_nothing_left(tmp_path):
    bad = spoil(tmp_path)
    with pytest.raises(ValueError, match='no motion could be read') as e:
        PoseSet.build(tmp_path, tmp_path/'set')
    assert all(n in str(e.value) for n in bad) and '\n' not in str(e.value)
    assert not [q for q in tmp_path.iterdir() if q.is_dir()]        # nothing half-written
    with pytest.raises(ValueError, match='no path was given'): PoseSet.build([])
    with pytest.raises(ValueError, match='no such file'): PoseSet.build(tmp_path/'gone')

@pytest.mark.parametrize('kw', [
    dict(fps=0), dict(fps=float('nan')), dict(middle=0), dict(keep=2), dict(middle=-1)])
def test_bad_options(tmp_path, kw):
    write(tmp_path/'a', a=walk(5))
    with pytest.raises(ValueError, match=next(iter(kw))):
        PoseSet.build(tmp_path/'a', tmp_path/'set', **kw)
    assert not (tmp_path/'set').exists()

def test_workers_change_nothing(tmp_path):
    write(tmp_path/'a', **{f'm{i}': walk(40+i, i) for i in range(5)})
    spoil(tmp_path/'a')
    one,two = (quiet_build(tmp_path/'a', keep=.5, workers=w) for w in (0,2))
    assert one.fingerprint==two.fingerprint and one.provenance==two.provenance
    assert one.skipped==two.skipped

def test_order_changes_no_draw(tmp_path):
    write(tmp_path, a=walk(100, 1), b=walk(100, 2))
    ab = quiet_build([tmp_path/'a.npz', tmp_path/'b.npz'], keep=.3)
    ba = quiet_build([tmp_path/'b.npz', tmp_path/'a.npz'], keep=.3)
    assert np.array_equal(ab.motion('a').poses, ba.motion('a').poses)

def test_saved_set_goes_in_again(tmp_path):
    write(tmp_path/'a', fps=60., a=walk(100, 1), b=walk(90, 2))
    first = quiet_build(tmp_path/'a', tmp_path/'first', mirror=True)
    again = quiet_build([tmp_path/'first'], middle=.5, keep=.5)
    assert again.fingerprint==first.fingerprint and again.provenance==first.provenance
    half = quiet_build([tmp_path/'first'], fps=15.)
    assert half.lengths==[n//2 for n in first.lengths]

def test_frames_are_accounted_for(tmp_path):
    write(tmp_path/'a', fps=120., a=walk(333), b=walk(7))
    s = quiet_build(tmp_path/'a', middle=.7, keep=.4)
    left = [p['frames']-sum(p['dropped'].values()) for p in s.provenance]
    assert left==s.lengths==[24, 1]   # 84 at 30 fps, 59 in the middle

def test_licence(tmp_path):
    s = quiet_build(write(tmp_path/'a', a=walk(9)), licence='CMU: free for all uses')
    assert [p['licence'] for p in s.provenance]==['CMU: free for all uses']

def test_cache_sees_changes(tmp_path):
    write(tmp_path/'a', a=walk(50, 1))
    one = cached_build(tmp_path/'a', Reading(), tmp_path/'c')
    write(tmp_path/'a', a=walk(60, 2)); os.utime(tmp_path/'a'/'a.npz', ns=(1,1))
    two = cached_build(tmp_path/'a', Reading(), tmp_path/'c')
    assert one.folder!=two.folder and len(two)==48

share = st.floats(.01, 1)

@given(n=st.integers(1, 500), middle=share, keep=share, seed=st.integers(0, 9))
def test_sample_frames(n, middle, keep, seed):
    ids = sample_frames(n, middle, keep, seed)
    assert len(ids)==max(1, round(max(1, round(n*middle))*keep)) and (np.diff(ids)>0).all()
    assert 0<=ids[0] and ids[-1]<n
    whole = sample_frames(n, middle)
    assert set(ids)<=set(whole) and abs(whole[0]-(n-1-whole[-1]))<=1

@given(n=st.integers(1, 30), data=st.data())
def test_join_is_reachability(n, data):
    pairs = data.draw(st.lists(st.tuples(st.integers(0,n-1), st.integers(0,n-1)), max_size=30))
    reach = np.eye(n, dtype=bool)
    for i,j in pairs: reach[i,j] = reach[j,i] = True
    for _ in range(n): reach = (reach.astype(int) @ reach)>0
    assert join(pairs, n)==[int(r.argmax()) for r in reach]

def test_thin_is_greedy(clips):
    s = clips.subset(np.arange(0, 400))
    x,angle = torch.from_numpy(s[:]),.25
    kept = []
    for i in range(len(x)):
        near = kept and (axis_angle_distance(x[i], x[kept]).amax(-1)<=angle).any()
        if not near: kept.append(i)
    assert s.thin(angle, block=64).rows.tolist()==kept

# ---- splits

@given(sizes=st.lists(st.integers(1, 10_000), min_size=3, max_size=40), seed=st.integers(0, 99))
def test_deal(sizes, seed):
    sizes = {f'g{i}': n for i,n in enumerate(sizes)}
    part = deal(sizes, (.8,.1,.1), seed)
    assert part.keys()==sizes.keys() and set(part.values())=={0,1,2}

@pytest.mark.parametrize('by', ['sequence','subject'])
@pytest.mark.parametrize('seed', range(5))
def test_copies_never_part(tmp_path, by, seed):
    made = {f'{10+i:02d}_01': walk(30+3*i, i) for i in range(6)}
    write(tmp_path/'npz', **made)
    write(tmp_path/'other'/'amc', **made)                           # every trial twice
    shifted = made['14_01']+np.float32(.01)
    write(tmp_path/'x', renamed=made['12_01'], shifted=shifted)     # and two under new names
    s = quiet_build([tmp_path/'npz', tmp_path/'other', tmp_path/'x'], mirror=True)
    parts = s.split(by, (.5,.25,.25), seed)
    assert sum(map(len, parts.values()))==len(s) and set(parts)=={'train','val','test'}
    assert_disjoint(parts)
    of = lambda name: {k for k,p in parts.items() if name in p.names}
    assert of('renamed')==of('12_01') and of('shifted')==of('14_01')
    assert all(len(of(n))==1 for n in s.names)

def test_leaks_are_caught(clips):
    with pytest.raises(ValueError, match='share the group'):
        assert_disjoint(dict(train=clips, test=clips.subset(clips.sequence==4)))
    a,b = PoseSet.from_arrays(walk(9), names=['a']), PoseSet.from_arrays(walk(9), names=['b'])
    with pytest.raises(ValueError, match='share the content'):
        assert_disjoint(dict(train=a, test=b))
    with pytest.raises(ValueError, match='share the group'):
        assert_disjoint(dict(train=a, test=a.mirrored()))

@pytest.mark.parametrize('f', [(.8,.2), (0,0,0), (1,-1,1), (float('nan'),1,1), (1,1,1,1)])
def test_bad_fractions(clips, f):
    with pytest.raises(ValueError, match='fractions'): clips.split(fractions=f)

@pytest.mark.parametrize('text', ['', '[]', '{"format": "posebook.PoseSet"}', None])
def test_bad_record(clips, tmp_path, text):
    if text is not None: (tmp_path/'r.json').write_text(text)
    with pytest.raises(ValueError, match='record of a split'): clips.split_as(tmp_path/'r.json')

def test_record_is_plain(clips, tmp_path):
    parts = clips.split(seed=5, save=tmp_path/'deep'/'split.json')
    r = json.loads((tmp_path/'deep'/'split.json').read_text())
    assert r==parts.record and isinstance(parts, Split) and r['seed']==5 and r['by']=='sequence'
    groups = sorted(p['group'] for p in clips.provenance)
    assert sorted(g for v in r['parts'].values() for g in v)==groups

# ---- batches

small = st.integers(1, 4)

@given(n=st.integers(1, 200), batch=st.integers(1, 50), world=small, epoch=small)
def test_batches_cover(n, batch, world, epoch):
    every = []
    for rank in range(world):
        b = IndexBatches(n, batch, True, 7, world, rank); b.set_epoch(epoch)
        given_ = list(b)
        assert len(given_)==len(b) and all(len(x)<=batch for x in given_)
        every.append(np.concatenate(given_))
    assert len({len(x) for x in every})==1                          # no process waits for another
    ids,counts = np.unique(np.concatenate(every), return_counts=True)
    assert len(ids)==n and counts.sum()-n<world+n*(world>n)

@pytest.mark.parametrize('workers', [0, 2])
def test_loader_in_other_processes(clips, tmp_path, workers):
    s = clips.save(tmp_path/'s')
    got = list(s.mirrored().loader(700, shuffle=True, seed=3, num_workers=workers))
    want = list(clips.mirrored().loader(700, shuffle=True, seed=3))
    assert all(torch.equal(a, b) for a,b in zip(got, want)) and len(got)==len(want)

def test_module_from_a_config(tmp_path):
    from jsonargparse import ArgumentParser
    p = ArgumentParser()
    p.add_class_arguments(PoseDataModule, 'data')
    write(tmp_path/'a', **{f'm{i}': walk(40, i) for i in range(4)})
    options = dict(paths=json.dumps([str(tmp_path/'a')]), fractions='[.5,.25,.25]', mirror='true',
                   cache_dir=str(tmp_path/'c'), batch_size='16')
    cfg = p.parse_args([f'--data.{k}={v}' for k,v in options.items()])
    make = getattr(p, 'instantiate', None) or p.instantiate_classes
    d = make(cfg).data
    assert (len(d.train_set), len(d.val_set), len(d.test_set))==(2*64, 32, 32)
    assert [len(b) for b in d.val_dataloader()]==[16,16] and len(d.fingerprint)==16
    again = p.parse_string(p.dump(cfg))                             # what a run records, read again
    assert make(again).data.fingerprint==d.fingerprint

def test_recorded_split_in_the_module(clips, tmp_path):
    clips.split(seed=9, fractions=(.6,.2,.2), save=tmp_path/'s.json')
    d = PoseDataModule(split_file=str(tmp_path/'s.json'), split_seed=1)
    assert d.test_set.fingerprint==clips.split(seed=9, fractions=(.6,.2,.2))['test'].fingerprint

# ---- real files

def test_real_mixture(real_data, tmp_path):
    cmu = real_data/'cmu'
    start = time.perf_counter()
    paths = [cmu/'bvh_mb', cmu/'amc'/'01_01.amc', cmu/'cmu_poses22.npz',
             cmu/'bvh_daz'/'indian'/'07.bvh']
    s = quiet_build(paths, tmp_path/'s')
    print(f'{s} in {time.perf_counter()-start:.1f} s')
    assert len(s)>30_000 and not s.skipped
    trial = [p['source'] for p in s.provenance if p['group']=='01_01']
    assert len(trial)==3                                              # BVH, AMC and the archive
    for seed in range(3):
        parts = s.split(seed=seed)
        assert sum('01_01' in {p['group'] for p in v.provenance} for v in parts.values())==1
    same = [i for i,p in enumerate(s.provenance) if p['group']=='01_01' and p['rig']!='smplx']
    a,b = (s.motion(i).joints() for i in same)
    assert (a-a[:,:1]-b+b[:,:1]).norm(dim=-1).mean() < .005
