"Networks over keypoints: shapes for every family and layout, what may not leak, what can be exported."
import pytest
import torch

from posebook.keypoint_networks import (FAR, NETWORKS, SIZES, count_parameters, frame_relations, joint_relations,
                                        make_network, tree_distances, visible_first)
from posebook.skeleton import get_skeleton

LAYOUTS = 'h36m17', 'coco17', 'body25', 'mpi_inf_3dhp17', 'coco_wholebody133'

def network(family, **kwargs):
    torch.manual_seed(0)
    return make_network(family, 'nano', **kwargs).eval()

@pytest.mark.parametrize('layout', LAYOUTS)
def test_relations_are_those_of_a_tree(layout):
    s = get_skeleton(layout)
    d, r = tree_distances(s), joint_relations(s)
    assert torch.equal(d, d.T) and (d.diagonal() == 0).all() and d.max() < len(s)
    assert (d == 1).sum() == 2*(len(s)-1)   # each bone once from either end
    assert torch.equal(r[:FAR+1].sum(0), torch.ones(len(s), len(s))) and r[-1].sum() == 0
    mirror = torch.tensor(s.mirror)
    if layout != 'coco_wholebody133':   # whose outline of the face runs from right to left
        assert torch.equal(d[mirror][:, mirror], d)   # a mirrored skeleton is the same skeleton

def test_frames_fall_into_bins_that_double():
    for frames in (1, 2, 3, 9, 27, 81):
        r = frame_relations(frames)
        assert torch.equal(r.sum(0), torch.ones(frames, frames)) and torch.equal(r, r.mT)
    assert frame_relations(27).shape[0] == 6

@pytest.mark.parametrize('family', NETWORKS)
@pytest.mark.parametrize('layout, out, frames, dims', [('h36m17', None, 1, 2), ('body25', 'h36m17', 1, 2),
                                                       ('h36m17', None, 9, 3), ('coco17', 'h36m17', 4, 2)])
def test_every_family_takes_every_layout(family, layout, out, frames, dims):
    net = network(family, layout=layout, frames=frames, in_dims=dims, layout_out=out)
    K, L = len(get_skeleton(layout)), len(get_skeleton(out or layout))
    x, seen = torch.randn(3, frames, K, dims), torch.rand(3, frames, K)
    masked = torch.rand(3, frames, K) < .3
    for m in (None, masked):
        y = net(x, seen, m)
        assert y.shape == (3, frames, L, net.dim) and y.isfinite().all()

@pytest.mark.parametrize('family', NETWORKS)
def test_hidden_joints_do_not_leak(family):
    net = network(family, frames=5)
    x, seen = torch.randn(4, 5, 17, 2), torch.ones(4, 5, 17)
    masked = torch.rand(4, 5, 17) < .4
    other = torch.where(masked[..., None], torch.randn_like(x), x)
    assert torch.equal(net(x, seen, masked), net(other, seen, masked))
    unseen = seen*(~masked)
    assert torch.equal(net(x, unseen), net(other, unseen))
    assert not torch.equal(net(x, unseen), net(x, seen, masked))   # not seen and hidden are different things

@pytest.mark.parametrize('family', NETWORKS)
def test_every_weight_learns(family):
    net = network(family, frames=3).train()
    masked = torch.rand(4, 3, 17) < .3
    seen = (torch.rand(4, 3, 17) > .2).float()
    for m in (None, masked):
        # a norm's features sum to zero, so only their squares move the weights before it
        (net(torch.randn(4, 3, 17, 2), seen, m)*torch.randn(net.dim)).square().sum().backward()
    still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still, still

def test_visible_tokens_keep_their_order():
    masked = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]]).bool()
    ids, real = visible_first(masked)
    assert ids[0].tolist()[:2] == [0, 2] and real.sum(1).tolist() == [2, 3, 0]

def test_a_vit_looks_at_visible_tokens_only():
    net, lengths = network('vit', frames=4), []
    net.encoder[0].register_forward_pre_hook(lambda m, args: lengths.append(args[0].shape[1]))
    masked = torch.zeros(2, 4, 17).bool()
    masked[:, 1:] = True
    net(torch.randn(2, 4, 17, 2), torch.ones(2, 4, 17), masked)
    assert lengths == [17]

@pytest.mark.parametrize('family', NETWORKS)
def test_sizes_grow_and_weights_come_back(family):
    with torch.device('meta'):
        sizes = [count_parameters(make_network(family, s)) for s in SIZES[family]]
    assert sizes == sorted(sizes)
    net, again = network(family), make_network(family, 'nano').eval()
    again.load_state_dict(net.state_dict())
    x, seen = torch.randn(2, 1, 17, 2), torch.rand(2, 1, 17)
    assert torch.equal(net(x, seen), again(x, seen))
    assert not [k for k in net.state_dict() if 'relations' in k]   # they follow from the layout

@pytest.mark.parametrize('family, frames', [('transformer', 3), ('vit', 3), ('mlp', 1)])
def test_networks_can_be_exported(family, frames, tmp_path):
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    net, batch = network(family, frames=frames), torch.export.Dim('batch')
    args = lambda n: (torch.randn(n, frames, 17, 2), torch.rand(n, frames, 17))
    program = torch.onnx.export(net, args(3), dynamo=True, dynamic_shapes=({0: batch}, {0: batch}), verbose=False)
    program.save(str(tmp_path/'net.onnx'))
    session = runtime.InferenceSession(str(tmp_path/'net.onnx'))
    x = args(7)
    y, = session.run(None, {i.name: v.numpy() for i, v in zip(session.get_inputs(), x)})
    with torch.no_grad(): torch.testing.assert_close(torch.tensor(y), net(*x), atol=1e-5, rtol=0)
