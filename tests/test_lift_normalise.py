"Normalisers: exact inverses, invariances, published numbers, and no input that gives NaN."
import json, math

import pytest, torch
from hypothesis import given, settings, strategies as st

from posebook.augment import Augment, DetectorNoise, detector_error, drop_batch, flip_batch, rotate_batch, scale_batch, tip_distance, trust
from posebook.keypoints import KeypointError, Keypoints
from posebook.normalisers import KINDS, Normaliser, root_points, root_relative
from posebook.skeleton import get_skeleton

LAYOUTS = 'h36m17','coco17','body25','coco_wholebody133','mpi_inf_3dhp17'

def people(layout='h36m17', B=3, T=4, seed=0):
    "Random pixels of people, and the sizes of their pictures"
    g = torch.Generator().manual_seed(seed)
    K = len(get_skeleton(layout))
    p = 400+80*torch.randn(B, T, K, 2, generator=g)+100*torch.randn(B, 1, 1, 2, generator=g)
    return p, torch.tensor([[1000.,1002.],[640.,480.],[1920.,1080.]])[:B]

def every(layout='h36m17'):
    "A fitted normaliser of each kind and sharing"
    p,_ = people(layout, seed=7)
    K = len(get_skeleton(layout))
    data = Keypoints(p.flatten(0, 1), torch.ones(12, K), layout, ['']*12)
    return [Normaliser(k, layout, over).fit(data) for k,overs in KINDS.items() for over in overs]

@pytest.mark.parametrize('layout', LAYOUTS)
def test_inverse_is_exact(layout):
    p,sizes = people(layout)
    seen = (torch.rand(p.shape[:3], generator=torch.Generator().manual_seed(1))>.3).float()
    for n in every(layout):
        x,frame = n(p, seen, sizes)
        back = n.inverse(x, frame)
        assert (back-p)[seen>0].abs().max() < 1e-3
        assert x[seen==0].abs().max()==0

@pytest.mark.parametrize('layout', LAYOUTS)
def test_json_round_trip_is_bitwise(layout):
    p,sizes = people(layout)
    for n in every(layout):
        again = Normaliser.from_config(json.loads(json.dumps(n.to_config())))
        assert torch.equal(again(p, sizes=sizes)[0], n(p, sizes=sizes)[0]) and again.fitted

@settings(max_examples=30, deadline=None)
@given(st.floats(.05, 20), st.floats(-3000, 3000), st.floats(-3000, 3000), st.integers(0, 5))
def test_root_and_box_forget_place_and_size(scale, dx, dy, seed):
    p,_ = people(seed=seed)
    for kind in ('root','box'):
        for over in ('window','frame'):
            n = Normaliser(kind, over=over)
            a,b = n(p.double())[0],n(p.double()*scale+torch.tensor([dx,dy]).double())[0]
            assert torch.allclose(a, b, atol=1e-7)

def test_root_ignores_what_hidden_joints_say():
    p,_ = people()
    seen = torch.ones(p.shape[:3])
    seen[:,:,[3,13]] = 0
    wild = torch.where(seen[...,None]>0, p, torch.tensor(1e6))
    for n in (Normaliser(), Normaliser('box'), Normaliser(over='frame')): assert torch.equal(n(p, seen)[0], n(wild, seen)[0])

def test_screen_is_that_of_videopose3d():
    w,h = 1000.,1002.
    p = torch.zeros(1, 17, 2)
    p[0,0],p[0,1],p[0,2] = torch.tensor([0.,0.]),torch.tensor([w,h]),torch.tensor([w/2,h/2])
    x,frame = Normaliser('screen')(p, sizes=torch.tensor([w,h]))
    assert torch.allclose(x[0,:3], torch.tensor([[-1,-h/w],[1,h/w],[0,0]]), atol=1e-7)
    assert torch.allclose((x+torch.tensor([1,h/w]))*w/2, p, atol=1e-4)   # its published inverse

def test_root_makes_people_a_tenth():
    p,_ = people()
    x,_ = Normaliser()(p)
    assert torch.allclose(x[:,:,1:].square().sum(-1).mean((1,2)).sqrt(), torch.full((3,), .1), atol=1e-6)
    assert torch.allclose(Normaliser(distance=5.)(p)[0], 2*x, atol=1e-6)

def test_dataset_size_keeps_who_is_larger():
    p,_ = people()
    n = Normaliser(over='dataset').fit(Keypoints(p.flatten(0, 1), torch.ones(12, 17), 'h36m17', ['']*12))
    assert torch.allclose(n(p[:1]*2)[0], 2*n(p[:1])[0], atol=1e-5)

def test_statistics_are_by_joint_and_only_of_what_is_seen():
    p,_ = people(T=60)
    rows,c = p.flatten(0, 1).clone(),torch.ones(180, 17)
    rows[::2,5],c[::2,5] = 1e5,0.
    c[:,9] = 0                                             # never seen
    n = Normaliser('standard').fit(Keypoints(rows, c, 'h36m17', ['']*180))
    assert torch.allclose(torch.tensor(n.mean[5]), rows[1::2,5].mean(0), atol=1e-2)
    assert torch.allclose(torch.tensor(n.spread[4]), rows[:,4].std(0, correction=0), atol=1e-2)
    assert all(math.isfinite(v) and v>0 for v in n.spread[9])

@pytest.mark.parametrize('broken', [math.nan, math.inf, -math.inf])
def test_never_nan(broken):
    p,sizes = people()
    p[0,0,0],p[1],p[2] = broken,broken,5.                  # a joint, everybody, all joints in one place
    for n in every():
        x,frame = n(p, sizes=sizes)
        assert x.isfinite().all() and frame.shift.isfinite().all() and (frame.scale>0).all()
        assert n(p, torch.zeros(p.shape[:3]), sizes)[0].abs().max()==0

def test_gradients_are_finite_where_all_joints_are_one():
    p = torch.full((1,1,17,2), 3., requires_grad=True)
    Normaliser()(p)[0].sum().backward()
    assert p.grad.isfinite().all()

@pytest.mark.parametrize('call, text', [
    (lambda p,s: Normaliser('standard')(p), 'fit'), (lambda p,s: Normaliser('screen')(p), 'sizes'),
    (lambda p,s: Normaliser('screen')(p, sizes=s*0), 'unknown'), (lambda p,s: Normaliser('root')(p[...,:16,:]), '(..., T, 17, 2)'),
    (lambda p,s: Normaliser('root')(p[0,0]), '(..., T, 17, 2)'), (lambda p,s: Normaliser('crop'), 'screen, box, root, standard'),
    (lambda p,s: Normaliser('box', over='dataset'), 'window, frame'), (lambda p,s: Normaliser(distance=0.), 'positive'),
    (lambda p,s: Normaliser('standard', mean=((0.,0.),)*17, spread=((0.,1.),)*17), 'fit it again')])
def test_refused(call, text):
    with pytest.raises(KeypointError) as e: call(*people())
    assert text in str(e.value)

def test_root_without_a_pelvis():
    for layout in LAYOUTS:
        p,_ = people(layout)
        s = get_skeleton(layout)
        seen = torch.zeros(p.shape[:3])
        seen[...,[s.index('left_hip'),s.index('right_hip')]] = 1
        hips = p[...,[s.index('left_hip'),s.index('right_hip')],:].mean(-2)
        assert torch.allclose(root_points(p, seen, s)[...,0,:], hips, atol=1e-4)
    x = torch.randn(2, 3, 17, 3)
    rel,root = root_relative(x, 'coco17')
    assert torch.allclose(rel[...,[11,12],:].mean(-2), torch.zeros(2, 3, 3), atol=1e-6)
    assert torch.allclose(rel+root[...,None,:], x, atol=1e-6)

# ---- augmentation

def batch(layout='h36m17', B=4, T=6, seed=0):
    "People before cameras with fx apart from fy and the principal point off the middle"
    g = torch.Generator().manual_seed(seed)
    K = len(get_skeleton(layout))
    x,root = .4*torch.randn(B, T, K, 3, generator=g),torch.tensor([.2,-.1,5.])+.2*torch.randn(B, T, 3, generator=g)
    f,c = torch.tensor([1100.,1180.]).expand(B, 2),torch.tensor([520.,470.])+10*torch.randn(B, 2, generator=g)
    out = dict(joints=x, root=root, focal=f, center=c, seen=torch.ones(B, T, K), size=torch.tensor([1000.,900.]).expand(B, 2))
    return out|dict(points=reproject(out))

def reproject(b):
    x = b['joints']+b['root'][:,:,None]
    return x[...,:2]/x[...,2:]*b['focal'][:,None,None]+b['center'][:,None,None]

@pytest.mark.parametrize('layout', LAYOUTS)
def test_augmented_joints_project_to_augmented_pixels(layout):
    b = batch(layout)
    for seed in range(5):
        new = Augment(flip=.5, rotate=40., scale=(.6,1.6))(b, layout, torch.Generator().manual_seed(seed))
        assert (reproject(new)-new['points']).abs().max() < .01
        assert not torch.equal(new['points'], b['points'])

@pytest.mark.parametrize('keys', [(), ('size',), ('focal','center'), ('joints','root'), ('joints','root','focal','center','size')])
def test_steps_undo_themselves_whatever_is_known(keys):
    b = {k: v for k,v in batch().items() if k not in keys}
    if 'size' in keys: b['size'] = torch.zeros(4, 2)       # there, and unknown
    b['seen'] = b['seen'].clone(); b['seen'][0,:,3] = 0; b['points'] = torch.where(b['seen'][...,None]>0, b['points'], 0.)
    angle,factor = torch.tensor([.5,-1.,2.,.1]),torch.tensor([.5,2.,1.1,.9])
    for name,there,back in (('flip', *(lambda x: flip_batch(x, 'h36m17'),)*2),
                            ('rotate', lambda x: rotate_batch(x, angle), lambda x: rotate_batch(x, -angle)),
                            ('scale', lambda x: scale_batch(x, factor), lambda x: scale_batch(x, 1/factor))):
        again = back(there(b))
        assert again.keys()==b.keys()
        for k in again:
            if (name,k)==('rotate','points') and len(keys)==5: continue   # nothing is known: about the middle of a box, which changes
            assert torch.allclose(again[k], b[k], atol=2e-3), (name,k)
        assert torch.equal((again['points']==0).all(-1), b['seen']==0)

def test_flip_exchanges_sides_in_all_three():
    b = batch()
    b['seen'][:,:,4:7] = .25                               # the left leg is less sure
    f = flip_batch(b, 'h36m17', torch.tensor([True,False,True,False]))
    assert (f['seen'][0,:,1:4]==.25).all() and (f['seen'][1]==b['seen'][1]).all()
    assert torch.allclose(f['joints'][0,:,1]*torch.tensor([-1.,1.,1.]), b['joints'][0,:,4])
    assert torch.allclose(f['points'][0,:,1,0], 1000-b['points'][0,:,4,0], atol=1e-3)
    assert torch.equal(f['points'][1], b['points'][1]) and torch.equal(f['center'][1], b['center'][1])

def test_same_generator_same_result():
    a = Augment(rotate=10., scale=(.9,1.1), joint_dropout=.2, frame_dropout=.2, noise='detector')
    one,two,other = (a(batch(), 'h36m17', torch.Generator().manual_seed(s)) for s in (3,3,4))
    assert all(torch.equal(one[k], two[k]) for k in one) and not torch.equal(one['points'], other['points'])
    assert one['points'][one['seen']==0].abs().max()==0

def test_dropout_leaves_people_behind():
    b = drop_batch(batch(T=20), joints=.95, frames=.95, generator=torch.Generator().manual_seed(0))
    n = (b['seen']>0).sum(-1)
    assert (n.amax(1)>=4).all() and n.float().mean() < 4
    assert (drop_batch(batch(T=1), frames=1., generator=torch.Generator())['seen']==1).all()   # a single frame is never dropped

# ---- detector noise

def test_noise_has_the_published_numbers():
    e = detector_error((4000,1), 'h36m17', torch.Generator().manual_seed(0))[:,0]
    d = tip_distance(get_skeleton('h36m17'))
    trunk,tips = e[:,d==0],e[:,d==1]
    assert abs(trunk.std()-math.hypot(.003, .002)) < 2e-4
    assert abs(tips.std()-math.sqrt(.7*.0095**2+.3*.03**2/3+.002**2)) < 4e-4
    assert .03 < e.abs().max() < .06
    c = trust(torch.zeros(100_000), torch.Generator().manual_seed(0))
    assert .93 < c.mean() < .96 and c.max()==1             # half of the draws are clipped at 1
    half = trust(torch.full((100_000,), .028), torch.Generator().manual_seed(0)).mean()
    assert abs(half-(.5+1.1*.028-.0046)) < .003

def test_noise_lasts_between_key_frames():
    e = detector_error((500,82), 'h36m17', torch.Generator().manual_seed(0))[:,:,3]   # an ankle
    corr = lambda lag: float((e[:,lag:]*e[:,:-lag]).mean()/e.square().mean())
    assert corr(1) > .8 and abs(corr(30)) < .05

def test_missed_and_swapped_shares():
    b = batch(B=200, T=27)
    g = torch.Generator().manual_seed(0)
    _,c = DetectorNoise(0., missed=.2)(b['points'], b['seen'], g, 'h36m17')
    assert abs((c==0).float().mean()-.2) < .02
    p,_ = DetectorNoise(0., swapped=.1)(b['points'], b['seen'], g, 'h36m17')
    legs,arms = ((p[:,:,j]!=b['points'][:,:,j]).any(-1).float().mean() for j in (3,13))
    assert abs(legs-.1) < .03 and abs(arms-.1) < .03
    assert torch.equal(p[:,:,[0,7,8,9,10]], b['points'][:,:,[0,7,8,9,10]])
    still = DetectorNoise(0.)(b['points'], b['seen'], g, 'h36m17')
    assert torch.equal(still[0], b['points']) and torch.equal(still[1], b['seen'])

def test_noise_grows_with_the_person_and_with_strength():
    b = batch(B=64, T=1)
    error = lambda scale,k: (DetectorNoise(k)(b['points']*scale, b['seen'], torch.Generator().manual_seed(0), 'h36m17')[0]
                             -b['points']*scale).norm(dim=-1).median()
    assert torch.allclose(error(2., 1.), 2*error(1., 1.), rtol=1e-3) and torch.allclose(error(1., 3.), 3*error(1., 1.), rtol=.1)

@pytest.mark.parametrize('make, text', [
    (lambda: Augment(flip=2.), 'flip'), (lambda: Augment(scale=(2.,1.)), 'scale'), (lambda: Augment(noise='openpose'), 'noise'),
    (lambda: DetectorNoise(missed=1.), 'missed'), (lambda: DetectorNoise(-1.), 'strength')])
def test_settings_are_checked(make, text):
    with pytest.raises(KeypointError) as e: make()
    assert text in str(e.value)
