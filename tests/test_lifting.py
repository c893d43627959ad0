"Lifters: what they read and refuse, how they learn, what they save and take, and what is made of their answers."
import math
import warnings

import pytest
import torch

from posebook.augment import Augment
from posebook.coordinates import PriorError
from posebook.keypoints import KeypointError, Keypoints
from posebook.lift_batches import LiftDataModule
from posebook.lift_data import Clip, LiftSet
from posebook.lift_losses import LossWeights, place_root, scaled_position_loss
from posebook.lifted import Lifted, joints_of_bones, upright_angle
from posebook.lifting import LEAST, Lifter, Masking, Objectives, joint_scores, teach
from posebook.skeleton import get_skeleton
from posebook.tracks import Track
from posebook.virtual_views import seeded

def lifter(**kwargs): return Lifter(**dict(size='nano', network='mlp')|kwargs).eval()
def people(n=12, K=17): return 500+120*torch.randn(n, K, 2, generator=torch.Generator().manual_seed(1))

@pytest.fixture(scope='module')
def data():
    made = LiftDataModule(fractions=(.6, .2, .2), batch_size=32, longest=40)
    made.setup()
    return made

@pytest.fixture(scope='module')
def batch(data): return next(iter(data.val_dataloader()))

# ---- what is read

def test_every_kind_of_input_gives_the_same_poses():
    m, p, c = lifter(), people(), torch.ones(12, 17)
    want = m.lift(p, c).joints
    track = Track(p, c, 'h36m17', torch.arange(12)*2)
    whole = LiftSet.of('h36m17', [(Clip('a', fps=25., size=(1000, 1000)), p, c, None)])
    alone = Keypoints(p, c, 'h36m17', [f'{i}.jpg' for i in range(12)])
    for given in (p, p.numpy(), track, whole, alone):
        torch.testing.assert_close(m.lift(given).joints, want)
    assert m.lift(track).frames.tolist() == list(range(0, 24, 2)) and m.lift(whole).fps == 25
    assert len(m.lift(alone).parts()) == 12 and len(m.lift(whole).parts()) == 1

def test_another_layout_is_converted_with_a_warning():
    m, p = lifter(), people(K=25)
    given = Keypoints(p, torch.ones(12, 25), 'body25', ['x']*12)
    with pytest.warns(UserWarning, match='stand-ins'): out = m.lift(given)
    assert out.joints.shape == (12, 17, 3) and out.layout.name == 'h36m17'

@pytest.mark.parametrize('points, confidence, says', [
    (torch.zeros(4, 25, 2), None, 'body25'),
    (torch.zeros(4, 17, 3), None, r'\(N, 17, 2\)'),
    (torch.zeros(17, 2), None, r'points\[None\]'),
    (torch.zeros(4, 11, 2), None, 'order'),
    (torch.zeros(0, 17, 2), None, 'people'),
    (people(4), torch.ones(4, 16), 'confidence'),
    (people(4), torch.zeros(4, 17), 'seen'),
    (torch.full((4, 17, 2), math.nan), None, 'seen'),
    (people(4), torch.full((4, 17), 1.5), r'\[0, 1\]')])
def test_what_cannot_be_lifted_is_refused(points, confidence, says):
    with pytest.raises(KeypointError, match=says): lifter().lift(points, confidence)

def test_what_is_not_a_number_was_not_seen():
    m, p = lifter(), people()
    seen = torch.ones(12, 17)
    seen[2, 4] = seen[:, 9] = 0
    bad = p.clone()
    bad[2, 4] = math.nan
    bad[:, 9, 1] = math.inf
    assert torch.equal(m.lift(bad).joints, m.lift(p, seen).joints)
    lost = seen.clone()
    lost[5] = math.nan
    with pytest.warns(UserWarning, match=f'1 of 12 frames show fewer than {LEAST}'): out = m.lift(p, lost)
    assert out.joints.isfinite().all() and not out.confidence[5].any()

@pytest.mark.parametrize('network', ['transformer', 'vit', 'mlp'])
@pytest.mark.parametrize('n', [1, 4, 9, 23])
def test_clips_of_any_length_are_lifted(network, n):
    m = lifter(network=network, frames=9)
    out = m.lift(people(n))
    assert out.joints.shape == (n, 17, 3) and out.joints.isfinite().all()
    torch.testing.assert_close(m.lift(people(n), batch_size=1).joints, out.joints, atol=1e-5, rtol=0)

def test_clips_of_a_set_do_not_see_each_other():
    m, p = lifter(network='transformer', frames=5), people(20)
    both = LiftSet.of('h36m17', [(Clip('a'), p[:7], None, None), (Clip('b'), p[7:], None, None)])
    torch.testing.assert_close(m.lift(both).joints, torch.cat([m.lift(p[:7]).joints, m.lift(p[7:]).joints]), atol=1e-5, rtol=0)

def test_overlapping_windows_agree_on_a_still_person():
    m = lifter(network='transformer', frames=9)
    out = m.lift(people(1).expand(30, -1, -1)).joints
    assert out.std(0).max() < .02   # a still clip is lifted alike, wherever the window stands

@pytest.mark.parametrize('output', ['joints', 'depth'])
def test_flipping_makes_mirror_images_equal(output):
    m, p, ids = lifter(output=output), people(), list(get_skeleton('h36m17').mirror)
    turned = (p*torch.tensor([-1., 1.])+torch.tensor([777., 0.]))[:, ids]
    a, b = m.lift(p, flip=True), m.lift(turned, flip=True)
    torch.testing.assert_close(b.joints[:, ids]*torch.tensor([-1., 1., 1.]), a.joints, atol=1e-4, rtol=0)
    if output == 'depth': torch.testing.assert_close(a.elevation, b.elevation)

def test_the_screen_normaliser_needs_the_size():
    m = lifter(normaliser='screen')
    assert m.lift(people(), size=(1000, 800)).joints.isfinite().all()
    with pytest.raises(KeypointError, match='sizes'): m.lift(people())

# ---- what comes out

def test_depth_keeps_people_on_their_rays():
    m, p = lifter(output='depth', network='transformer'), people()[:, None]
    x, _ = m.normaliser(p, torch.ones(12, 1, 17))
    q = m.predict(x, torch.ones(12, 1, 17))
    z = 10+q.depth[..., None]
    rays = q.joints/torch.linalg.vector_norm(q.joints, dim=(-2, -1), keepdim=True)
    want = torch.cat([x*z, z], -1)-torch.cat([x*z, z], -1)[..., :1, :]
    want = want/torch.linalg.vector_norm(want, dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(rays, want, atol=1e-5, rtol=0)
    assert not q.depth[..., 0].any()

def test_an_unseen_joint_is_placed_where_it_is_guessed():
    m = lifter(output='depth', network='transformer')
    p, seen = people()[:, None], torch.ones(12, 1, 17)
    seen[..., 13] = 0
    a, b = m(p, seen), m(torch.where(seen[..., None] > 0, p, 0.), seen)
    assert torch.equal(a, b) and a[..., 13, :].norm(dim=-1).min() > 0

def test_level_undoes_a_tilt():
    g = torch.Generator().manual_seed(0)
    world = torch.randn(30, 17, 3, generator=g)
    e = torch.tensor(.4)
    c, s = e.cos(), e.sin()
    down = world*torch.tensor([1., -1., -1.])
    seen = torch.stack([down[..., 0], c*down[..., 1]-s*down[..., 2], s*down[..., 1]+c*down[..., 2]], -1)
    out = Lifted(seen, torch.zeros(30, 17, 2), torch.ones(30, 17), 'h36m17', torch.zeros(30).long(), torch.arange(30),
                 elevation=e.expand(30))
    torch.testing.assert_close(out.level(), world, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.level(e), out.level())

def test_bones_lead_back_to_joints():
    for name in ('h36m17', 'coco17', 'mpi_inf_3dhp17'):
        s, x = get_skeleton(name), torch.randn(5, len(get_skeleton(name)), 3)
        a, b = map(list, zip(*s.bones))
        y = joints_of_bones(x[:, b]-x[:, a], s)
        torch.testing.assert_close(y-y[:, :1], x-x[:, :1], atol=1e-5, rtol=0)

def test_nobody_who_stands_leaves_the_usual_angle():
    assert abs(upright_angle(torch.randn(200, 17, 3)*.01+torch.tensor([1., 0, 0])*torch.arange(17.)[:, None]).item()) < .6

# ---- how they learn

def test_a_batch_can_be_learned_by_heart(batch):
    m = Lifter(network='mlp', size='tiny', losses=LossWeights(scaled_position=0.))
    opt = torch.optim.Adam(m.parameters(), 3e-3)
    for _ in range(150):
        loss, _ = m.objective_terms(batch)
        opt.zero_grad(); loss.backward(); opt.step()
    pa = joint_scores(m(batch['points'], batch['seen']).flatten(0, 1), batch['joints'].flatten(0, 1))['pa_mpjpe'].mean()
    assert pa < 40, pa

def test_rows_without_labels_do_not_teach(batch):
    m = lifter()
    half = dict(batch, labelled=torch.arange(len(batch['points'])) % 2 == 0)
    other = dict(half, joints=torch.where(half['labelled'][:, None, None, None], batch['joints'], 5.))
    (a, _), (b, _) = m.objective_terms(half), m.objective_terms(other)
    assert torch.equal(a, b)
    none, terms = m.objective_terms(dict(batch, labelled=half['labelled'] & False))
    assert none == 0 and none.requires_grad

def test_draws_depend_on_seed_epoch_and_batch_alone(batch):
    m = lifter(augment=Augment(flip=.5, rotate=10., joint_dropout=.2, noise='detector'),
               objectives=Objectives(masked=1.))
    loss = lambda *key: m.objective_terms(batch, seeded(*key))[0]
    torch.manual_seed(5)
    a = loss(0, 1, 2)
    torch.manual_seed(6)
    assert torch.equal(a, loss(0, 1, 2)) and not torch.equal(a, loss(0, 1, 3))

def test_targets_of_filling_in_are_clean(batch):
    m = lifter(augment=Augment(flip=0., joint_dropout=.4, noise=.05))
    v, _ = m.view(batch, seeded(1))
    hidden = (v.seen == 0) & (v.known > 0)
    assert hidden.float().mean() > .2 and not v.x[hidden].any() and v.clean[hidden].abs().max() > .01
    clear = lifter().view(batch)[0]
    torch.testing.assert_close(clear.x, clear.clean)

def test_masking_never_hides_everything():
    for joints, frames in ((1., 1.), (.3, .8), (0., 0.)):
        hidden = Masking(joints, frames)((20, 5, 17), torch.Generator().manual_seed(0))
        assert ((~hidden).sum((1, 2)) >= 3).all()

@pytest.mark.parametrize('output', ['joints', 'depth'])
def test_a_clip_student_asks_a_frame_teacher(output, data, tmp_path):
    t = lifter(output='depth')
    t.save_pretrained(tmp_path/'teacher')
    m = Lifter(network='transformer', size='nano', frames=6, output=output, objectives=Objectives(supervised=0., distilled=1.),
               teacher=str(tmp_path/'teacher'))
    m.make_helpers()
    p, seen = people(24).view(4, 6, 17, 2), torch.ones(4, 6, 17)
    told = teach(t, p, seen, torch.zeros(4, 2))
    torch.testing.assert_close(told.joints[1, 3], t(p[1:2, 3:4], seen[1:2, 3:4])[0, 0])
    b = dict(points=p, seen=seen, size=torch.zeros(4, 2), labelled=torch.zeros(4).bool(), joints=torch.zeros(4, 6, 17, 3))
    loss, terms = m.objective_terms(b)
    assert set(terms) == {'distilled'} | ({'distilled_elevation'} if output == 'depth' else set())
    loss.backward()
    assert 'helpers' not in dict(m.named_modules()) and not [k for k in m.state_dict() if 'teacher' in k]
    with pytest.raises(KeypointError, match='for 4'):
        lifter(frames=4).save_pretrained(tmp_path/'four')
        Lifter(size='nano', frames=6, objectives=Objectives(distilled=1.), teacher=str(tmp_path/'four')).make_helpers()

def test_losses_scale_over_windows():
    x = torch.randn(2, 5, 17, 3)
    grows = x*torch.linspace(1, 2, 5).view(5, 1, 1)
    assert scaled_position_loss(grows, x) < 1e-5 < scaled_position_loss(grows, x, over='window')
    rays = x[..., :2]/(x[..., 2:]+9)
    torch.testing.assert_close(place_root(x, rays, torch.ones(2, 5, 17))[..., 2], torch.full((2, 5), 9.), atol=.02, rtol=0)

# ---- what is saved and taken

def test_saved_lifters_come_back_whole(tmp_path, data):
    m = Lifter(network='vit', size='nano', frames=3, output='depth', normaliser=dict(kind='root', over='frame', distance=8.),
               objectives=Objectives(masked=.5), losses=LossWeights(velocity=1.), augment=Augment(rotate=5., scale=(.8, 1.2)),
               settings=dict(dim=16, heads=2), seed=3).eval()
    back = Lifter.from_pretrained(m.save_pretrained(tmp_path/'m'))
    assert (back.objectives, back.losses, back.augment, back.normaliser) == (m.objectives, m.losses, m.augment, m.normaliser)
    assert torch.equal(back.lift(people()).joints, m.lift(people()).joints)
    assert back.identity() == m.identity() and m.identity()['frames'] == 3

def test_first_weights_follow_the_seed_and_nothing_else():
    torch.manual_seed(1)
    a = lifter(seed=2).state_dict()
    state = torch.random.get_rng_state()
    b = lifter(seed=2).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a) and torch.equal(torch.random.get_rng_state(), state)
    assert any(not torch.equal(a[k], v) for k, v in lifter(seed=3).state_dict().items())

def test_weights_are_taken_where_they_fit(tmp_path, data):
    source = Lifter(network='transformer', size='nano', objectives=Objectives(supervised=0., masked=1.))
    source.save_pretrained(tmp_path/'source')
    m = Lifter(network='transformer', size='nano', frames=4, init_from=str(tmp_path/'source'))
    taken, fresh = m.take_weights(tmp_path/'source')
    assert 'net.tokens.project.weight' in taken and any('time' in k for k in fresh) and 'net.tokens.frame' in fresh
    assert 'head.weight' not in taken
    torch.save(dict(state_dict=source.state_dict()), tmp_path/'some.ckpt')
    assert m.take_weights(tmp_path/'some.ckpt')[0] == taken
    assert str(len(taken)) in m.remarks()[0] and 'source' in m.remarks()[0]
    torch.save([1], tmp_path/'bad.ckpt')
    with pytest.raises(PriorError, match='state_dict'): m.take_weights(tmp_path/'bad.ckpt')
    with pytest.raises(PriorError, match='no weight fits'): lifter().take_weights(source.state_dict())

@pytest.mark.parametrize('settings, says', [
    (dict(output='mesh'), 'joints or depth'), (dict(inputs='4d'), '2d or 3d'), (dict(inputs='3d'), 'masked alone'),
    (dict(output='depth', normaliser='box'), 'root'), (dict(objectives=Objectives(unsupervised=1.)), 'flow'),
    (dict(objectives=Objectives(distilled=1.)), 'teacher'), (dict(network='cnn'), 'transformer'), (dict(size='vast'), 'nano'),
    (dict(settings=dict(dpeth=3)), 'dpeth'), (dict(normaliser='grid'), 'screen')])
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(KeypointError, match=says): lifter(**settings)

def test_three_dimensional_pretraining_is_no_lifter(data, batch):
    m = Lifter(network='vit', size='nano', inputs='3d', objectives=Objectives(supervised=0., masked=1.))
    loss, terms = m.objective_terms(batch)
    assert set(terms) == {'masked'} and loss > 0 and m.monitor == 'val/loss'
    with pytest.raises(KeypointError, match='2d'): m.lift(people())

def test_validation_logs_what_runs_watch(data):
    m = Lifter(network='mlp', size='nano')
    with warnings.catch_warnings():
        warnings.simplefilter('error', category=RuntimeWarning)
        m.fit(data, 2, limit_val_batches=2, val_check_interval=1)
    logged = m.trainer.callback_metrics
    assert {'val/loss', 'val/mpjpe', 'val/pa_mpjpe', 'val/pa_mpjpe_reflected', 'val/n_mpjpe'} <= set(logged)
    assert 50 < logged['val/mpjpe'] < 2000 and logged['val/pa_mpjpe'] < logged['val/mpjpe']
    assert m.watched(data) == 'val/pa_mpjpe'
    assert Lifter(size='nano', objectives=Objectives(supervised=0., masked=1.)).watched(data) == 'val/loss'
