"""The objective without labels: windows, gaps, gradients, and the density it stands on"""
import pytest, torch
from posebook.coordinates import PriorError
from posebook.keypoint_networks import make_network
from posebook.lift_batches import LiftDataModule
from posebook.unsupervised import KeypointFlow, UnsupervisedObjective, bone_shares, facing, make_objective, place

gen = lambda seed: torch.Generator().manual_seed(seed)

@pytest.fixture(scope='module')
def people():
    "Windows of real people before virtual cameras, normalised"
    from posebook.normalisers import Normaliser
    data = LiftDataModule(batch_size=64, frames=5)
    batch = next(iter(data.train_dataloader()))
    return Normaliser('root')(batch['points'])[0], batch

@pytest.fixture(scope='module')
def density(people):
    "A density that has been started, not trained"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = KeypointFlow(dims=20, blocks=2, hidden=16)
    flow.start(people[0].flatten(0, 1))
    return flow.eval()

class Lift(torch.nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net,self.head = make_network('mlp', 'nano', frames=5, dim=4),torch.nn.Linear(4, 4)
    def forward(self, x, seen):
        out = self.head(self.net(x, seen))
        guess,depth = out[...,:2],torch.cat([0*out[...,:1,2],out[...,1:,2]], -1)
        return torch.where(seen[...,None]>0, x, guess),depth,.17+out[...,3].mean(-1)

def test_all_parts_move_the_lifter_and_none_the_density(people, density):
    x,lift = people[0],Lift()
    objective = make_objective('h36m17', density)
    total,parts = objective.loss(lift, x, torch.ones(x.shape[:3]), gen(0))
    assert set(parts)=={'likelihood','lift_back','look_back','difference','bones','elevation','facing','steadiness'}
    assert all(v.isfinite() and v>=0 for k,v in parts.items() if k!='likelihood')
    total.backward()
    assert sum(p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in lift.parameters())>=8
    assert all(p.grad is None for p in objective.parameters())

def test_the_same_generator_gives_the_same_walk(people, density):
    x,lift,objective = people[0],Lift(),make_objective('h36m17', density)
    one,two,three = (objective.loss(lift, x, torch.ones(x.shape[:3]), gen(s))[0] for s in (1,1,2))
    assert one==two!=three

def test_unseen_joints_teach_through_those_that_are_seen(people, density):
    x,lift,objective = people[0].clone(),Lift(),make_objective('h36m17', density)
    seen = torch.ones(x.shape[:3]); seen[:,:,13] = 0
    a = objective.loss(lift, x, seen, gen(0))[1]
    x[:,:,13] = 77.
    b = objective.loss(lift, torch.where(seen[...,None]>0, x, 0.), seen, gen(0))[1]
    assert a['look_back'].isfinite() and torch.allclose(a['look_back'], b['look_back'], rtol=.2)

def test_one_person_and_one_frame(people, density):
    x = people[0][:1,:1]
    class One(Lift):
        def forward(self, y, seen): return tuple(v[:,:1] for v in super().forward(y.expand(-1, 5, -1, -1), seen.expand(-1, 5, -1)))
    total,parts = make_objective('h36m17', density).loss(One(), x, torch.ones(1, 1, 17), gen(0))
    assert total.isfinite() and 'steadiness' not in parts and parts['difference']==0

def test_truth_has_its_bones_and_its_nose(people):
    joints = people[1]['joints']
    assert (facing(joints)>0).float().mean() > .9
    assert (bone_shares(joints).mean(-1)-1).abs().max() < 1e-5
    assert bone_shares(joints).var(1).max() < .05  # the collar bones alone are not rigid

def test_density_is_saved_with_its_directions(density, people, tmp_path):
    density.save_pretrained(tmp_path/'flow')
    again = KeypointFlow.from_pretrained(tmp_path/'flow')
    x = people[0].flatten(0, 1)
    assert again.started and torch.equal(again(x), density(x))
    assert make_objective('h36m17', str(tmp_path/'flow')).flow.started

@pytest.mark.parametrize('make, says', [
    (lambda: KeypointFlow(dims=33), 'expected 2 to 32'),
    (lambda: KeypointFlow(dims=1), 'expected 2 to 32'),
    (lambda: UnsupervisedObjective(KeypointFlow()), 'has not been trained'),
    (lambda: make_objective('h36m17', '/nowhere'), 'no flow at /nowhere'),
])
def test_what_is_refused(make, says):
    with pytest.raises(PriorError, match=says): make()

def test_a_density_wants_enough_poses():
    with pytest.raises(PriorError, match='needs more than'): KeypointFlow().start(torch.randn(20, 17, 2, generator=gen(0)))

def test_place_keeps_the_picture_whatever_the_depth():
    x,d = torch.randn(3, 17, 2, generator=gen(0)),5*torch.randn(3, 17, generator=gen(1))
    x[:,0],d[:,0] = 0,0
    p = place(x, d)
    front = 10+d>1
    assert torch.allclose((p[...,:2]/(p[...,2:]+10))[front], x[front], atol=1e-5)
