"""`posebook.fitting` and `posebook.denoising`: terms, steps, independence of windows, starts, clouds, gaps"""
import math
import pytest, torch
from hypothesis import given, settings, strategies as st
from posebook.coordinates import PriorError
from posebook.denoising import (PUBLISHED, cubic_path, denoise_joints, denoise_poses, denoise_published, fill_gaps, inbetween,
                                published_schedule)
from posebook.fitting import (Bones, Cloud, Fit, Guess, Joints3D, Markers, Nearby, Ordinary, Plausible, Smooth, Stage, Stay,
                              calibrate, draw, fit_poses, pose_from_joints, pull, shortest_arc, soften, spreader, steps_of,
                              tangent_gradient, turn_by, whole_poses, windows)
from posebook.gaussian import GaussianPrior
from posebook.poses import embedded_data
from posebook.prior import PosePrior
from posebook.rotations import axis_angle_distance, axis_angle_to_matrix, canonical_axis_angle, matrix_to_axis_angle
from posebook.skeleton import get_skeleton

SHORT = (Stage(6, .03, dict(plausible=0.)), Stage(8, .02))

@pytest.fixture(scope='module')
def clips():
    s = embedded_data()
    return torch.stack([torch.as_tensor(s.poses[i:i+12]) for i in (100, 400, 900)]).float()

@pytest.fixture(scope='module')
def gaussian(): return GaussianPrior('full', joints='body').fit(torch.as_tensor(embedded_data().poses[::7]).float())

@pytest.fixture(scope='module')
def cloud(gaussian): return Cloud(gaussian, 600)

def gen(seed=0): return torch.Generator().manual_seed(seed)


# ---- steps along rotations

@settings(max_examples=40, deadline=None)
@given(st.floats(1e-6, math.pi-1e-4), st.integers(0, 99))
def test_gradient_along_rotations_is_that_of_a_turn_after(angle, seed):
    d, W = torch.randn(3, generator=gen(seed)).double(), torch.randn(3, 3, generator=gen(seed+1)).double()
    v = (angle*d/d.norm()).requires_grad_()
    ours = tangent_gradient(v.detach(), torch.autograd.grad((axis_angle_to_matrix(v)*W).sum(), v)[0])
    u = torch.zeros(3).double().requires_grad_()
    true, = torch.autograd.grad((axis_angle_to_matrix(v.detach())@axis_angle_to_matrix(u)*W).sum(), u)
    assert torch.allclose(ours, true, atol=1e-6)

def test_turns_compose_and_stay_canonical():
    v, u = 3*torch.randn(50, 3, generator=gen()).double(), .1*torch.randn(50, 3, generator=gen(1)).double()
    out = turn_by(v, u)
    assert torch.allclose(axis_angle_to_matrix(out), axis_angle_to_matrix(v)@axis_angle_to_matrix(u), atol=1e-8)
    assert out.norm(dim=-1).max() <= math.pi+1e-6

def test_a_fit_does_not_depend_on_how_the_world_is_turned(clips):
    "One step size for each joint: turning target and start turns the answer"
    R = axis_angle_to_matrix(torch.tensor([.3, 2., -.7]))
    start, bones = clips[:1].clone(), Bones()
    target = bones.joints(start)+.05*torch.randn(1, 12, 22, 3, generator=gen())
    a = fit_poses(start, [Joints3D(target)], schedule=SHORT)
    pivot = bones.joints(start*0)[:, :, :1]
    turned, shift = start.clone(), pivot
    turned[:, :, 0] = matrix_to_axis_angle(R@axis_angle_to_matrix(start[:, :, 0]))
    b = fit_poses(turned, [Joints3D((target-shift)@R.T+shift)], schedule=SHORT)
    assert torch.allclose((a.joints-shift)@R.T+shift, b.joints, atol=2e-3)


# ---- windows are independent, and fits repeat

@pytest.mark.parametrize('make', [
    lambda c, g: None, lambda c, g: Plausible(g, .05), lambda c, g: Plausible(g, .05, jitter=.05),
    lambda c, g: Nearby(c, name='plausible')], ids=['none', 'energy', 'jitter', 'cloud'])
def test_a_window_ends_where_it_would_alone(clips, gaussian, cloud, make):
    noisy = Bones().joints(clips)+.03*torch.randn(3, 12, 22, 3, generator=gen())
    start = clips+.05*torch.randn(clips.shape, generator=gen(1))
    run = lambda i: fit_poses(start[i], [Joints3D(noisy[i], .03), Smooth(.01)], make(cloud, gaussian), SHORT, generator=gen(2))
    all_, one = run(slice(None)), run(slice(1, 2))
    assert (all_.joints[1]-one.joints[0]).norm(dim=-1).max() < 1e-3
    assert torch.equal(run(slice(1, 2)).poses, one.poses)

def test_single_poses_are_windows_of_one_frame(clips):
    x = clips[0, :3]
    t = Bones().joints(x)+.02
    a, b = fit_poses(x, [Joints3D(t)], schedule=SHORT), fit_poses(x[:, None], [Joints3D(t[:, None])], schedule=SHORT)
    assert a.poses.shape == x.shape and torch.equal(a.poses, b.poses[:, 0]) and a.translation.shape == (3, 3)

def test_double_precision_stays_double(clips):
    x = clips[:1].double()
    f = fit_poses(x, [Joints3D(Bones().joints(x)+.01), Smooth()], schedule=SHORT)
    assert f.poses.dtype == f.joints.dtype == torch.float64

def test_traces_hold_every_term_and_add_up(clips):
    f = fit_poses(clips, [Joints3D(Bones().joints(clips)+.01), Smooth(), Stay(clips)], schedule=SHORT)
    parts = sum(v for k, v in f.trace.items() if k != 'total')
    assert set(f.trace) == {'joints3d', 'smooth', 'stay', 'total'} and f.trace['total'].shape == (14, 3)
    assert torch.allclose(parts, f.trace['total'], rtol=1e-5)

def test_stages_weigh_terms_and_weights_may_be_functions(clips):
    seen = []
    term = Joints3D(Bones().joints(clips)+.01, weight=lambda p: seen.append(p) or 1-p)
    f = fit_poses(clips, [term, Smooth()], schedule=(Stage(3, weights=dict(smooth=0.)), Stage(2)))
    assert (f.trace['smooth'][:3] == 0).all() and (f.trace['smooth'][3:] > 0).all()
    assert {0., .2, .4, .6, .8} <= {round(s, 6) for s in seen}

@pytest.mark.parametrize('bad, word', [(dict(schedule=(Stage(1, weights=dict(data=1.)),)), 'data'),
                                       (dict(fixed=torch.ones(3).bool()), '55')])
def test_what_cannot_be_meant_is_refused(clips, bad, word):
    with pytest.raises(PriorError, match=word): fit_poses(clips, [Smooth()], **bad)

def test_fixed_joints_and_frames_stay(clips):
    target = Bones().joints(clips)+.2
    fixed = torch.zeros(12).bool(); fixed[[0, 11]] = True
    f = fit_poses(clips, [Joints3D(target), Smooth()], schedule=SHORT, fixed=fixed[None, :, None].expand(3, 12, 55))
    assert torch.equal(f.poses[:, fixed], canonical_axis_angle(clips)[:, fixed]) and (f.translation[:, fixed] == 0).all()
    assert (f.translation[:, ~fixed] != 0).all()


# ---- terms

def test_costs_are_nats():
    r = torch.randn(2, 3, 4, 3, generator=gen())
    normal = -torch.distributions.Normal(0, 1).log_prob(r).flatten(1).sum(1)
    assert torch.allclose(pull(r), normal-36*.5*math.log(2*math.pi), atol=1e-4)
    assert torch.equal(pull(r, torch.zeros(2, 3, 4)), torch.zeros(2))
    assert torch.allclose(pull(r, norm='mean'), r.norm(dim=-1).flatten(1).mean(1), atol=1e-5)

def test_a_robust_cost_is_bounded_and_the_same_near_zero():
    far, near = torch.full((1, 1, 1, 3), 1e3), torch.full((1, 1, 1, 3), 1e-3)
    assert pull(far, robust=2.)[0] <= 2. and pull(near, robust=2.)[0] == pytest.approx(pull(near)[0].item(), rel=1e-4)

def test_markers_on_joints_are_where_rigid_bones_put_them(clips):
    bones, ids, off = Bones(), [4, 18], torch.tensor([[.1, 0, 0], [0, .05, .02]])
    p, G = bones.place(clips)
    where = p[:, :, ids]+(G[:, :, ids]@off[..., None])[..., 0]
    assert Markers(where, .01, ids, offsets=off)(Guess(bones, clips, clips.new_zeros(3, 12, 3))).max() < 1e-5
    assert Markers(where+.01, .01, ids, offsets=off)(Guess(bones, clips, clips.new_zeros(3, 12, 3))).min() > 10

class Skin:
    "A body whose vertices are its joints, and that grows with its shape"
    skeleton = get_skeleton('body22')
    def joints(self, poses, shape=None, translation=None):
        x = Bones().joints(poses, translation=translation)
        return x if shape is None else x*(1+.1*shape[..., :1, None])
    def __call__(self, poses, shape=None, translation=None):
        from types import SimpleNamespace
        return SimpleNamespace(vertices=self.joints(poses, shape, translation))

def test_markers_on_the_skin_and_shapes_are_fitted(clips):
    x = clips[:, :1]
    target = Skin().joints(x, torch.full((3, 1, 2), .8))
    f = fit_poses(x, [Markers(target[:, :, :20], .01, list(range(20))), Ordinary(10.)], schedule=(Stage(150, .05),),
                  model=Skin(), shape=torch.zeros(3, 2), moves=('shape',))
    assert torch.allclose(f.shape[:, 0], torch.full((3,), .8), atol=.02) and f.shape[:, 1].abs().max() < .02

def test_staying_costs_half_a_squared_angle():
    v = torch.zeros(1, 1, 2, 3); v[0, 0, 0, 1] = .01
    assert Stay(torch.zeros(1, 1, 2, 3), .1)(Guess(Bones(), v, None)).item() == pytest.approx(.5*(.01/.1)**2, rel=1e-2)

def test_smoothness_of_even_motion_is_free():
    t = torch.linspace(0, 1, 8)[None, :, None]*torch.tensor([1., 2, 3])
    g = lambda t: Guess(Bones(), torch.zeros(1, 8, 55, 3), t)
    assert Smooth()(g(t)) < 1e-6 and Smooth(order=1)(g(t)) > 1 and Smooth()(g(t**2)) > 1
    assert Smooth()(Guess(Bones(), torch.zeros(1, 2, 55, 3), torch.zeros(1, 2, 3))) == 0 # too short to tell

def test_energies_and_distances_of_any_prior(clips, gaussian):
    g = Guess(Bones(), clips, clips.new_zeros(3, 12, 3))
    assert torch.allclose(Plausible(gaussian)(g), gaussian.energy(clips.flatten(0, 1)).view(3, 12).sum(1), rtol=1e-5)
    wild = Guess(Bones(), clips+.5*torch.randn(clips.shape, generator=gen()), g.translation)
    near, far = (Plausible(gaussian, .1, kind='distance')(x) for x in (g, wild))
    assert (far > near).all() and (near >= 0).all()

def test_poses_get_the_joints_of_a_layout():
    x = torch.randn(2, 22, 3)
    assert whole_poses(x, 55).shape == (2, 55, 3) and torch.equal(whole_poses(x, 55)[:, :22], x) and (whole_poses(x, 55)[:, 22:] == 0).all()
    assert torch.equal(whole_poses(whole_poses(x, 55), 22), x)
    assert windows(x, 4).shape == (2, 1, 22, 3) and windows(x[None], 4).shape == (1, 2, 22, 3)


# ---- starts

def test_clean_joints_give_back_their_positions(clips):
    joints = Bones().joints(clips, translation=torch.tensor([1., 2., 3.]))
    poses, t = pose_from_joints(joints)
    assert (Bones().joints(poses, translation=t)-joints).norm(dim=-1).mean() < .012

def test_bones_of_a_performer_each():
    s = get_skeleton('body22')
    offsets = s.offsets*torch.tensor([1., 1.2])[:, None, None]
    x = Bones(offsets=offsets).joints(torch.zeros(2, 5, 55, 3))
    assert x.shape == (2, 5, 22, 3) and torch.allclose(x[1], 1.2*x[0], atol=1e-6)

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999))
def test_shortest_arcs_arrive(seed):
    a, b = torch.randn(2, 3, generator=gen(seed)).double()
    R = shortest_arc(a, b)
    assert torch.allclose(R@a/a.norm(), b/b.norm(), atol=1e-6) and torch.allclose(R@R.T, torch.eye(3).double(), atol=1e-8)

def test_softening_keeps_what_is_constant_and_calms_noise():
    assert torch.allclose(soften(torch.ones(1, 9, 2), 2.), torch.ones(1, 9, 2))
    x = torch.randn(1, 200, 3, generator=gen())
    assert soften(x, 2.).std() < .5*x.std() and torch.allclose(soften(x, 0.), x)

def test_gradients_are_spread_over_time_only_where_it_is_stiff(clips):
    data, stiff = Joints3D(clips, .1), Smooth(.001)
    A = spreader(clips, [data, stiff], Stage(1), 0.)
    assert A.shape == (12, 12) and (A-A.T).abs().max() < 1e-4 and A[6, 7] > .05
    assert spreader(clips, [data], Stage(1), 0.) is None and spreader(clips[:, :2], [data, stiff], Stage(1), 0.) is None
    assert spreader(clips, [data, stiff], Stage(1, weights=dict(smooth=0.)), 0.) is None

def test_steps_count_and_fall():
    s = (Stage(2, .1), Stage(3, .1, fall=False))
    assert [p for *_, p in steps_of(s)] == pytest.approx([0, .2, .4, .6, .8])
    assert s[0].rate(0) == .1 > s[0].rate(1) and s[1].rate(2) == .1


# ---- clouds

def test_the_nearest_samples_are_the_nearest(cloud):
    y = cloud.features[[3, 50]]+1e-4
    near = cloud.nearest(y, 5)
    true = torch.cdist(y, cloud.features).topk(5, largest=False).indices
    assert torch.allclose(near, cloud.features[true])

def test_a_cloud_repeats_and_may_be_poses(gaussian, cloud):
    assert torch.equal(Cloud(gaussian, 600).poses, cloud.poses)
    assert Cloud(cloud.poses[:20]).features.shape == (20, 63)

class Leaky(PosePrior):
    "A prior some of whose samples overflow"
    def __init__(self): super().__init__('body')
    def sample(self, n, generator=None):
        x = torch.zeros(n, 55, 3); x[::10] = math.inf
        return x

def test_broken_samples_are_left_out():
    assert len(draw(Leaky(), 1500)) == 1350

def test_a_cloud_pulls_towards_its_poses(clips, cloud):
    wild = clips.clone()
    wild[:, :, 1:22] += .5*torch.randn(3, 12, 21, 3, generator=gen())
    near = lambda p: torch.cdist(p[:, :, 1:22].flatten(0, 1).flatten(1), cloud.features).amin(1).mean()
    f = fit_poses(wild, [], Nearby(cloud, name='plausible'), schedule=(Stage(60, .05),), moves=('poses',))
    assert near(f.poses) < .6*near(wild)

def test_a_shake_costs_the_same_after_calibration(clips, gaussian):
    wide = GaussianPrior('diagonal', joints='body').fit(torch.as_tensor(embedded_data().poses[::7]).float())
    x = clips.flatten(0, 1)
    y = x+.3*torch.randn(x.shape, generator=gen())
    with torch.no_grad(): rise = [float(calibrate(p, x)*(p.energy(y)-p.energy(x)).median()) for p in (gaussian, wide)]
    assert rise == pytest.approx([126, 126], rel=.15)


# ---- motion

def test_noise_gets_less_with_and_without_a_prior(clips, cloud):
    joints = Bones().joints(clips)
    noisy = joints+.05*torch.randn(joints.shape, generator=gen())
    off = lambda f: (f.joints-joints).norm(dim=-1).mean()
    none, some = denoise_joints(noisy, None, .05), denoise_joints(noisy, cloud, .05)
    assert off(some) < off(none) < .7*(noisy-joints).norm(dim=-1).mean()
    turn = lambda f: axis_angle_distance(f.poses[:, :, 1:22], clips[:, :, 1:22]).mean()
    assert turn(some) < turn(none)

def test_unseen_joints_do_not_pull(clips, cloud):
    joints = Bones().joints(clips)
    broken, c = joints.clone(), torch.ones(3, 12, 22)
    broken[:, :, 20], c[:, :, 20] = 9., 0.
    terms = lambda target: [Joints3D(target, .02, confidence=c)]
    a, b = (fit_poses(clips, terms(t), schedule=SHORT) for t in (joints, broken))
    assert torch.allclose(a.poses, b.poses, atol=1e-6)

def test_rotations_are_cleaned(clips, cloud):
    noisy = canonical_axis_angle(clips+.2*torch.randn(clips.shape, generator=gen()))
    off = lambda p: axis_angle_distance(p[:, :, :22], clips[:, :, :22]).mean()
    assert off(denoise_poses(noisy, cloud, .2).poses) < .8*off(noisy)

@pytest.mark.parametrize('name', PUBLISHED)
def test_published_schedules_have_their_steps(name):
    n, steps, lr, _ = PUBLISHED[name]
    s = published_schedule(name)
    assert len(s) == n and all(x.steps == steps and x.rate(steps-1) == lr for x in s)

def test_published_weights():
    assert published_schedule('pose-ndf')[0].weights == dict(joints3d=0, smooth=10, plausible=1e7)
    assert published_schedule('pose-ndf-v2')[2].weights == dict(joints3d=20, smooth=30, plausible=3e5)
    with pytest.raises(PriorError, match='nrdf'): published_schedule('smplify')

def test_published_recipes_run_without_truth_and_without_a_prior(clips, gaussian):
    for p in (None, gaussian):
        f = denoise_published(clips[:1], p, 'nrdf', scale=.1)
        assert isinstance(f, Fit) and f.poses.isfinite().all()

def test_gaps_are_filled_evenly_and_keys_stay(clips, cloud):
    keys = torch.zeros(12).bool(); keys[[0, 4, 11]] = True
    even, bent = fill_gaps(clips, keys), inbetween(clips, keys, cloud, schedule=(Stage(5, .01),)).poses
    for p in (even, bent): assert torch.allclose(p[:, keys], canonical_axis_angle(clips)[:, keys], atol=1e-5)
    step = axis_angle_distance(even[:, 4:-1], even[:, 5:])
    assert (step-step.mean(1, keepdim=True)).abs().max() < 2e-3
    hidden = clips.clone(); hidden[:, ~keys] = 5.
    assert torch.equal(fill_gaps(hidden, keys), even) # what is between keys is not looked at

def test_paths_pass_through_keys_and_lines_stay_lines():
    keys = torch.zeros(11).bool(); keys[[0, 3, 10]] = True
    line = torch.arange(11.)[None, :, None]*torch.tensor([1., -2, .5])
    assert torch.allclose(cubic_path(line, keys), line, atol=1e-5)
    x = torch.randn(2, 11, 3, generator=gen())
    assert torch.allclose(cubic_path(x, keys)[:, keys], x[:, keys], atol=1e-6)

def test_a_window_whose_gradient_breaks_stands_still_and_is_told():
    from posebook.fitting import Term
    class Broken(Term):
        def __call__(self, guess):
            x = guess.poses.flatten(1).sum(1)
            return torch.stack([x[0]*0, (x[1]*0).sqrt()+x[1]])           # the slope of a root at nothing
    start = .1*torch.randn(2, 3, 55, 3, generator=torch.Generator().manual_seed(0))
    target = Bones().joints(start*0)
    with pytest.warns(UserWarning, match='1 of 2 windows'):
        fit = fit_poses(start, [Joints3D(target), Broken()], schedule=(Stage(20, .03),), moves=('poses',))
    assert fit.stuck.tolist() == [False, True]
    assert torch.allclose(fit.poses[1], start[1], atol=1e-5) and not torch.allclose(fit.poses[0], start[0], atol=1e-2)
