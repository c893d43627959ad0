"""`posebook.completion`: conditionals, hypotheses from samples, errors, proposals, fits to points"""
import math
import pytest, torch
from posebook.completion import (LIMBS, complete, complete_gaussian, complete_nearby, completion_error, draw_conditional, fit_points,
                                 known_without, middle_pose, proposals, regression, seen_points, split_joints)
from posebook.coordinates import PriorError
from posebook.fitting import Bones, Cloud, Joints3D, Markers, Stage
from posebook.gaussian import GaussianPrior
from posebook.global_flow import GlobalFlowPrior
from posebook.poses import embedded_data
from posebook.rotations import axis_angle_to_matrix, canonical_axis_angle
from posebook.skeleton import get_skeleton

def gen(seed=0): return torch.Generator().manual_seed(seed)

@pytest.fixture(scope='module')
def parts(): return embedded_data().split(by='sequence', fractions=(.6, 0, .4), seed=0)

@pytest.fixture(scope='module')
def train(parts): return torch.as_tensor(parts['train'].poses).float()

@pytest.fixture(scope='module')
def test_poses(parts): return canonical_axis_angle(torch.as_tensor(parts['test'].poses[::60]).float())

@pytest.fixture(scope='module')
def mixture(train): return GaussianPrior('mixture', joints='body', components=4).fit(train)

@pytest.fixture(scope='module')
def cloud(mixture): return Cloud(mixture, 2000)


# ---- what is known

@pytest.mark.parametrize('limb', LIMBS)
def test_limbs_mirror(limb):
    s, lost = get_skeleton('smplx'), (~known_without(limb)).nonzero()[:, 0].tolist()
    other = limb.replace('left', 'X').replace('right', 'left').replace('X', 'right')
    assert {s.mirror[j] for j in lost} == set((~known_without(other)).nonzero()[:, 0].tolist())

def test_any_joints_may_be_missing():
    assert (~known_without(['left_knee', 20])).nonzero()[:, 0].tolist() == [4, 20]
    assert int(known_without('body').sum()) == 34
    with pytest.raises(ValueError): known_without('third arm')
    with pytest.raises(PriorError, match='0 of 21'): split_joints(list(range(1, 22)), known_without('body'))


# ---- conditionals

def test_components_share_by_what_they_explain():
    "Two far components: knowing the first number tells which"
    loc = torch.tensor([[-5., -3.], [5., 3.]]).double()
    L = torch.eye(2).double().expand(2, 2, 2)
    x, free = torch.tensor([[5., 0.], [-5., 0.]]).double(), torch.tensor([False, True])
    y = draw_conditional(torch.zeros(2).double(), loc, L, x, free, 500, gen())
    assert y[:, 0, 1].mean() == pytest.approx(3, abs=.2) and y[:, 1, 1].mean() == pytest.approx(-3, abs=.2)
    assert (y[:, 0, 0] == 5).all()

def test_conditional_draws_have_the_density_that_they_should(mixture, test_poses):
    "Self-normalised importance weights of the joint density agree with the closed form"
    known = known_without('head')
    h = complete_gaussian(mixture, test_poses[:1], known, 4000, gen())[:, 0]
    wide = h.clone()
    wide[:, [12, 15]] = h[:, [12, 15]].mean(0)+.15*torch.randn(4000, 2, 3, generator=gen(1))
    w = (-mixture.energy(wide)).softmax(0)
    assert torch.allclose((w[:, None, None]*wide).sum(0)[[12, 15]], h.mean(0)[[12, 15]], atol=.05)

@pytest.mark.parametrize('limb', ['left arm', 'upper'])
def test_what_is_known_stays_and_what_is_not_is_not_looked_at(mixture, cloud, test_poses, limb):
    known = known_without(limb)
    hidden = test_poses.clone(); hidden[:, ~known] = 1.
    for p in (mixture, cloud):
        a, b = (complete(p, x, limb, 3, gen()) for x in (test_poses, hidden))
        assert torch.allclose(a, b, atol=1e-4) and torch.equal(a[:, :, known], test_poses[:, known].expand(3, -1, -1, -1))
        assert a.norm(dim=-1).max() <= math.pi+1e-4

def test_samples_come_close_to_the_closed_form(mixture, cloud, test_poses):
    known = known_without('right arm')
    rest = completion_error(torch.where(known[:, None], test_poses, torch.zeros(()))[None], test_poses, known).middle.mean()
    a, b = (completion_error(complete(p, test_poses, known, 10, gen()), test_poses, known) for p in (mixture, cloud))
    assert abs(a.usual.mean()-b.usual.mean()) < .25*a.usual.mean() and b.best.mean() < .8*rest

def test_a_linear_world_is_completed_exactly():
    "Where missing joints follow known ones, the regression says so"
    S = torch.zeros(400, 55, 3)
    S[:, 1:22] = .3*torch.randn(400, 21, 3, generator=gen())
    S[:, 18] = .5*S[:, 1]-.2*S[:, 2]
    lost = torch.ones(55).bool(); lost[18] = False
    x = S[:50].clone(); x[:, 18] = 9.
    out = complete_nearby(Cloud(S[50:]), x, lost, 2, gen(), neighbours=300, sigma=1e-3)
    assert (out[:, :, 18]-S[:50, 18]).abs().max() < .02

def test_weights_count_in_a_regression():
    a = torch.randn(1, 40, 2, generator=gen())
    b = a@torch.tensor([[1., 2.], [0, 1.]])
    b[:, 20:] = 50. # nonsense that weighs nothing
    w = torch.cat([torch.full((1, 20), 1/20), torch.zeros(1, 20)], 1)
    assert torch.allclose(regression(a, b, w, 1e-4)[0], torch.tensor([[1., 0], [2., 1.]]), atol=1e-3)

def test_the_prior_has_a_say(mixture, cloud, test_poses):
    known = known_without('upper')
    energy = lambda t: mixture.energy(complete_nearby(cloud, test_poses, known, 4, gen(), tries=6, temperature=t).flatten(0, 1)).mean()
    assert energy(.1) < energy(1e4)

def test_a_flow_that_completes_does_it_itself(train, test_poses):
    flow = GlobalFlowPrior(joints='body', blocks=2, hidden=16, depth=1, completes=True).fit(train[::20], max_epochs=1)
    a = complete(flow, test_poses[:5], 'head', 3, gen())
    known = known_without('head')
    hidden = torch.where(known[:, None], test_poses[:5], torch.zeros(()))
    assert torch.equal(a, flow.complete(hidden, known, 3, gen()))


# ---- errors

def test_errors_by_hand():
    truth, known = torch.zeros(1, 55, 3), known_without(['left_elbow'])
    h = truth.expand(2, 1, 55, 3).clone()
    h[1, :, get_skeleton('smplx').index('left_elbow'), 1] = math.pi/2
    e = completion_error(h, truth, known)
    x = Bones().joints(h)
    moved = [18, 20] # the elbow stays, the wrist moves
    d = (x[1]-x[0])[:, moved].norm(dim=-1).mean()
    assert e.best.item() == 0 and e.best_degrees.item() == pytest.approx(0, abs=.05)
    assert e.usual.item() == pytest.approx(d.item()/2, rel=1e-4) and e.degrees.item() == pytest.approx(45, abs=.1)

def test_the_middle_of_turns_is_a_turn():
    h = torch.zeros(2, 1, 3, 3); h[0, 0, 0, 0], h[1, 0, 0, 0] = .4, .8
    assert torch.allclose(middle_pose(h)[0, 0], torch.tensor([.6, 0, 0]), atol=1e-4)


# ---- points

def test_a_sample_itself_is_found_however_it_is_turned(cloud):
    S = cloud.poses[[7, 300]].clone()
    S[:, 0] = torch.tensor([[.4, 2., .1], [-.3, -1., .7]])
    bones = Bones()
    joints = bones.joints(S, translation=torch.tensor([[1., 0, 2], [0, 1., 0]]))
    poses, t = proposals(cloud, Joints3D(joints), bones, 3)
    assert poses.shape == (3, 2, 55, 3) and (bones.joints(poses[0], translation=t[0])-joints).norm(dim=-1).max() < 2e-3

def test_points_that_were_not_seen_do_not_count(cloud):
    bones, S = Bones(), cloud.poses[[11]]
    joints, c = bones.joints(S), torch.ones(1, 22)
    joints[:, 21], c[:, 21] = 7., 0.
    poses, t = proposals(cloud, Joints3D(joints, confidence=c), bones, 1)
    assert (bones.joints(poses[0], translation=t[0])-bones.joints(S))[:, :21].norm(dim=-1).max() < 2e-3

def test_hypotheses_come_with_the_likeliest_first(cloud, test_poses):
    ids = [0, 15, 20, 21]
    joints = Bones().joints(test_poses[:4])[:, ids]
    f = fit_points(Joints3D(joints, .01, ids), cloud, n=3, schedule=(Stage(40, .04),))
    cost = f.trace['total'][-1].view(3, 4).sort(0).values
    assert f.poses.shape == (3, 4, 55, 3) and f.joints.shape == (3, 4, 22, 3) and (cost[0] <= cost[2]).all()
    assert (f.joints[0][:, ids]-joints).norm(dim=-1).mean() < .03

def test_markers_tell_the_twist(cloud, test_poses):
    few, bones = test_poses[:4], Bones()
    ride = list(range(22))*2
    off = .08*torch.randn(44, 3, generator=gen())
    term = Markers(torch.zeros(4, 44, 3), .005, ride, offsets=off)
    term.target = seen_points(term, bones, few)
    f = fit_points(term, cloud)
    twist = lambda p: (axis_angle_to_matrix(p[:, 1:22])-axis_angle_to_matrix(few[:, 1:22])).norm(dim=(-2, -1)).mean()
    alone = fit_points(Joints3D(bones.joints(few), .005), cloud)
    assert twist(f.poses[0]) < .7*twist(alone.poses[0])

def test_bad_poses_are_refused(mixture):
    with pytest.raises(PriorError): complete(mixture, torch.zeros(2, 22, 3), 'head')
    with pytest.raises(PriorError, match='finite'): complete(mixture, torch.full((2, 55, 3), math.nan), 'head')
