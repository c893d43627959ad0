"Virtual cameras see whole people, batches are what seed, epoch and rows say, and parts share no recording."
import json, math

import numpy as np, pytest, torch

from posebook.augment import DetectorNoise
from posebook.keypoints import KeypointError
from posebook.lift_batches import LiftDataModule, SetRows, label_recordings
from posebook.lift_data import LiftSet
from posebook.normalisers import Normaliser
from posebook.poses import PoseSet, embedded_data
from posebook.skeleton import get_skeleton, pose_to_joints
from posebook.virtual_views import (ViewRows, VirtualBodies, VirtualCameras, ball, look, scale_bones, see_poses, seeded, seen_joints,
                                    window_rows)

@pytest.fixture(scope='module')
def poses(): return embedded_data()

def reproject(b):
    x = b['joints']+b['root'][:,:,None]
    return x[...,:2]/x[...,2:]*b['focal'][:,None,None]+b['center'][:,None,None]

@pytest.mark.parametrize('layout, via', [('h36m17',''), ('h36m17','body25'), ('h36m17',['','coco17']), ('coco17',''), ('body25',''),
                                         ('body22','')])
@pytest.mark.parametrize('frames', [1,13])
def test_everybody_is_in_the_picture_and_reprojects(poses, layout, via, frames):
    rows = ViewRows(poses, layout, frames, via=via)
    b = rows[np.arange(0, len(rows), 5)]
    K = len(get_skeleton(layout))
    assert b['points'].shape==(len(b['clip']),frames,K,2) and (b['seen']==1).all()
    assert b['points'].min()>=0 and b['points'].max()<=1000
    assert (reproject(b)-b['points']).abs().max() < .05
    assert b['root'][...,2].min() > 1.5 and b['labelled'].all()

def test_cameras_are_as_asked_for():
    few = VirtualCameras(distance=(4.,5.), elevation=(30.,2.), azimuth=(0.,90.), roll=0., fov=(40.,41.), aim=0., size=(1280,720))
    c = few.sample(400, seeded(0))
    assert (c.width,c.height)==(1280,720)
    d = c.position.norm(dim=-1)
    assert d.min()>=4 and d.max()<=5
    up = torch.rad2deg(torch.asin(c.position[:,1]/d))
    assert abs(up.mean()-30) < .5 and abs(up.std()-2) < .4
    assert c.position[:,0].min()>=0 and c.position[:,2].min()>=0          # azimuth from +z to +x
    assert torch.allclose(c.project(torch.zeros(400, 1, 3))[:,0], torch.tensor([640.,360.]).expand(400, 2), atol=.01)
    assert c.R[:,0,1].abs().max() < 1e-6                                  # without roll the horizon is level
    assert (c.fov('vertical')-40.5).abs().max() < .6

def test_fingerprints_of_cameras_do_not_depend_on_global_state():
    torch.manual_seed(0); a = VirtualCameras().sample(5, seeded(1, 2))
    torch.manual_seed(1); b = VirtualCameras().sample(5, seeded(1, 2))
    assert torch.equal(a.R, b.R) and not torch.equal(a.R, VirtualCameras().sample(5, seeded(2, 1)).R)

def test_travel_makes_cameras_step_back():
    x = torch.zeros(1, 30, 17, 3)
    x[...,0] = torch.linspace(-4, 4, 30)[None,:,None]
    c = VirtualCameras(distance=(3.,3.)).sample(1, seeded(0), *ball(x))
    assert c.position.norm()>4/math.sin(math.radians(30)) and (look(x, c, 'h36m17')['seen']==1).all()

def test_what_is_behind_is_not_seen(poses):
    x = seen_joints(pose_to_joints(torch.from_numpy(poses.take(slice(0, 4))))[:,:22], 'h36m17')[None]
    c = VirtualCameras().sample(1, seeded(0))
    behind = c.replaced(t=c.t-torch.tensor([0.,0.,20.]))
    b = look(x, behind, 'h36m17')
    assert b['seen'].max()==0 and b['points'].abs().max()==0 and all(v.isfinite().all() for v in b.values())

def test_scaling_bones_keeps_directions_and_symmetry():
    x = pose_to_joints(.3*torch.randn(5, 55, 3, generator=seeded(0)))[:,:22]
    s = get_skeleton('body22')
    f = VirtualBodies(.1, .1).sample(5, s, seeded(1))
    y = scale_bones(x, f, s)
    for j,p in enumerate(s.parents):
        if p>=0: assert torch.allclose(y[:,j]-y[:,p], (x[:,j]-x[:,p])*f[:,j,None], atol=1e-5)
    assert torch.equal(f, f[:,list(s.mirror)])
    alike = VirtualBodies(.1, 0.).sample(3, s, seeded(1))
    assert torch.allclose(alike, alike[:,:1].expand(3, 22))

def test_windows_stay_inside():
    w = window_rows([3,1,5], 5)
    assert w.tolist()[:4]==[[0,0,0,1,2],[0,0,1,2,2],[0,1,2,2,2],[3,3,3,3,3]] and len(w)==9
    assert len(window_rows([10,4], 3, 4))==4 and window_rows([7], 1).ravel().tolist()==list(range(7))

def test_batches_depend_on_seed_epoch_and_rows_alone(poses):
    ids = np.array([5,800,44,17])
    a = ViewRows(poses, seed=3)[ids]
    b = ViewRows(poses, seed=3)[ids]
    assert all(torch.equal(a[k], b[k]) for k in a)
    for other in (ViewRows(poses, seed=4)[ids], ViewRows(poses, seed=3)[ids[::-1]]):
        assert not torch.allclose(other['points'].sum(), a['points'].sum(), atol=1.)
    twice = ViewRows(poses, seed=3, views=2)
    assert len(twice)==2*len(poses) and torch.equal(twice[ids+len(poses)]['frame_ids'], a['frame_ids'])

def test_workers_give_the_same_batches_in_every_epoch():
    def batches(workers, epochs=2):
        dm = LiftDataModule(frames=3, batch_size=200, num_workers=workers, noise=DetectorNoise(1., .1, .1))
        loader,out = dm.train_dataloader(),[]
        for e in range(epochs):
            loader.sampler.set_epoch(e)
            out += [b['points'] for b in loader]
        return out
    a,b = batches(0),batches(2)
    assert len(a)==len(b) and all(torch.equal(x, y) for x,y in zip(a, b))
    assert not torch.equal(a[0], a[len(a)//2])

def test_resume_within_an_epoch():
    make = lambda: LiftDataModule(batch_size=200).train_dataloader()
    whole = make(); whole.sampler.set_epoch(1)
    full = list(whole)
    part = make()
    part.load_state_dict(dict(epoch=1, batch=2))
    rest = list(part)
    assert len(rest)==len(full)-2 and all(torch.equal(a[k], b[k]) for a,b in zip(full[2:], rest) for k in a)

def test_held_out_views_are_fixed_and_reproject(poses):
    a,b = (see_poses(poses, views=2, seed=1, noise=n, bodies=VirtualBodies()) for n in (None,DetectorNoise()))
    assert isinstance(a, LiftSet) and a.reprojection_error().max() < .05 and a.absolute
    assert torch.equal(a.joints, b.joints) and 0 < b.reprojection_error().nanmedian() < 10
    assert see_poses(poses, views=2, seed=1, bodies=VirtualBodies()).fingerprint==a.fingerprint
    assert see_poses(poses, views=2, seed=2, bodies=VirtualBodies()).fingerprint!=a.fingerprint
    assert {c.group for c in a.clips}=={p['group'] for p in poses.provenance}
    room = a.clips[0].extrinsics
    assert torch.allclose(room.R@room.R.T, torch.eye(3), atol=1e-5) and room.position.shape==(3,)

def test_one_body_a_recording(poses):
    s = see_poses(poses, views=2, longest=20, bodies=VirtualBodies())
    thigh = (s.joints[:,2]-s.joints[:,1]).norm(dim=-1)
    by = {}
    for c in s.clips: by.setdefault(c.group, []).append(thigh[c.start:c.stop])
    assert all(torch.cat(v).std() < 1e-4 for v in by.values())
    assert len({round(float(v[0][0]), 4) for v in by.values()})==len(by)

def test_labels_are_a_share_of_recordings():
    dm = LiftDataModule(labels=.3, fractions=(.8,.2,0.), batch_size=4000)
    b = next(iter(dm.train_dataloader()))
    known = set(dm.parts.record['labelled'])
    assert 0 < len(known) < len(dm.recordings('train'))
    names = [p['group'] for p in dm.part('train').provenance]
    assert all((names[c] in known)==l for c,l in zip(b['clip'].tolist(), b['labelled'].tolist()))
    assert b['joints'][~b['labelled']].abs().max()==0 and b['root'][~b['labelled']].abs().max()==0
    assert next(iter(dm.val_dataloader()))['labelled'].all()
    assert not next(iter(LiftDataModule(labels=0., batch_size=100).train_dataloader()))['labelled'].any()
    sizes = {str(i): 10 for i in range(100)}
    assert len(label_recordings(sizes, .05))==5 and label_recordings(sizes, .05) < label_recordings(sizes, .2)

def files(tmp_path, n=2):
    "Files of views, one subject each"
    from dataclasses import replace
    s = see_poses(embedded_data(), longest=100)
    paths = []
    for i in range(n):
        part = s.select([k for k in range(len(s.clips)) if k%n==i])
        paths.append(tmp_path/f'{i}.npz')
        replace(part, clips=[replace(c, subject=f'S{i}', group=f'{i}{c.group}') for c in part.clips]).save(paths[-1])
    return [str(p) for p in paths]

def test_files_in_parallel(tmp_path):
    paths = files(tmp_path)
    one,two = (LiftDataModule(source='files', paths=paths, read_workers=w) for w in (0,2))
    assert one.fingerprint==two.fingerprint and two.lift_set('train').layout.name=='h36m17'
    b = next(iter(one.train_dataloader()))
    assert (reproject(b)-b['points']).abs().max() < .05
    path = tmp_path/'split.json'
    one.parts.save(path)
    assert json.loads(path.read_text())['labelled']==sorted({c.group for c in one.part('train').clips})

def test_subjects_held_out_by_name(tmp_path):
    dm = LiftDataModule(source='files', paths=files(tmp_path, 3), split_by='subject', held_out=['S1'], fractions=(.5,.5,0.))
    dm.setup()
    who = {n: {c.subject for c in s.clips} for n,s in dm.parts.items()}
    assert who['test']=={'S1'} and not who['train']&who['val']
    assert dm.parts.record['parts']['test']==[c.name for c in dm.part('test').clips]

def test_recordings_held_out_by_name():
    dm = LiftDataModule(held_out=['walk','run'])
    assert dm.recordings('test')==['run','walk'] and not set(dm.recordings('train'))&{'run','walk'}
    assert len(dm.part('train'))%2==0                                     # mirrored
    with pytest.raises(KeypointError, match='S11'): LiftDataModule(held_out=['S11']).setup()

def test_statistics_are_kept(tmp_path):
    make = lambda **k: LiftDataModule(cache_dir=str(tmp_path), **k)
    n = make().fit_normaliser(Normaliser('root', over='dataset'))
    kept = list(tmp_path.glob('normaliser-*.json'))
    assert n.fitted and len(kept)==1
    assert make().fit_normaliser(Normaliser('root', over='dataset'))==n
    make(split_seed=3).fit_normaliser(Normaliser('root', over='dataset'))
    assert len(list(tmp_path.glob('normaliser-*.json')))==2               # other data, other statistics
    assert make().fit_normaliser(Normaliser())==Normaliser()

def test_nothing_unknown_is_nan():
    s = see_poses(embedded_data(), longest=50).select([0,1,2])
    from dataclasses import replace
    bare = replace(s, clips=[replace(c, camera=None, extrinsics=None, size=None) for c in s.clips], joints=None, absolute=False)
    b = SetRows(bare, 9)[np.arange(len(bare))]
    assert all(v.isfinite().all() for v in b.values()) and not b['labelled'].any() and b['focal'].max()==0 and b['size'].max()==0

def test_recorded_positions_are_used():
    "The path through the room is in the view, where the recording has one"
    t = np.zeros((20,3), 'f4'); t[:,2] = np.linspace(0, 2, 20)
    s = PoseSet.from_arrays(np.zeros((20,55,3), 'f4'), t)
    root = see_poses(s).root()
    assert abs((root[-1]-root[0]).norm()-2) < .01

@pytest.mark.parametrize('make, text', [
    (lambda: VirtualCameras(fov=(50.,200.)), 'fov'), (lambda: VirtualCameras(distance=(5.,3.)), 'ascending'),
    (lambda: VirtualCameras(aim=2.), 'aim'),
    (lambda: ViewRows(embedded_data(), 'mpii17'), 'joints that a body has'), (lambda: LiftDataModule(source='files'), 'paths'),
    (lambda: LiftDataModule(frames=0), 'frames'), (lambda: LiftDataModule(labels=-.1), 'labels')])
def test_refused(make, text):
    with pytest.raises(KeypointError, match=text): make()
