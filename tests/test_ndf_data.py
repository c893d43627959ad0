"Labelled poses: exact labels, pure chunks, files that survive SIGKILL, and data that training can resume"
import hashlib, json, multiprocessing, os, pickle, random, signal, time
from dataclasses import replace
import numpy as np, pytest, pytorch_lightning as pl, torch
from jsonargparse import ArgumentParser
from safetensors import safe_open
from posebook.coordinates import PriorError
from posebook.ndf_data import (DistanceData, DistanceSet, NoiseOptions, PiecewiseFile, load_parts, make_distance_set,
                               open_part, prepare, read_header)
from posebook.ndf_labels import Recipe, perturb, poses_to_quaternions
from posebook.poses import PoseDataModule, embedded_data
from posebook.rotations import quaternion_distance, quaternion_to_axis_angle

QUIET = lambda text: None
SMALL = dict(number=240, chunk=64, k=2, say=QUIET)
sha = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()

@pytest.fixture(scope='module')
def clips(): return embedded_data()

@pytest.fixture(scope='module')
def source(): return PoseDataModule(fps=6, mirror=True, fractions=(.7,.1,.2))

@pytest.fixture(scope='module')
def whole(source, tmp_path_factory): return prepare(source, tmp_path_factory.mktemp('ndf')/'whole.safetensors', **SMALL)

# ---- labels

LEVELS = {f'{k} {v}': NoiseOptions(k, **o) for k, v, o in (
    ('tangent', 'near', dict(far=0, partial=0, uniform=0)), ('tangent', 'far', dict(near=0, partial=0, uniform=0)),
    ('tangent', 'partial', dict(near=0, far=0, uniform=0)), ('tangent', 'uniform', dict(near=0, far=0, partial=0)),
    ('quaternion', 'levels', {}), ('geodesic', '', {}), ('tangent', 'clean', dict(clean=1.)))}

@pytest.mark.parametrize('noise', LEVELS.values(), ids=LEVELS)
def test_labels_are_those_of_brute_force(clips, noise):
    s = make_distance_set(clips, 290, noise, k=5) # 7 x 290 > 2,000 queries
    unit = lambda x: x/np.linalg.norm(x, axis=-1, keepdims=True)
    q, c = unit(s.quaternions.astype(float)), unit(s.clean.astype(float))
    brute = sum(2*np.arccos(np.minimum(np.abs(q[:, j] @ c[:, j].T), 1)) for j in range(21))/21
    best = np.sort(brute, 1)[:, :5]
    assert np.abs(s.distance-best).max() < 1e-6
    assert np.abs(np.take_along_axis(brute, s.nearest, 1)-best).max() < 1e-7  # arccos near 1 knows no more
    assert s.distance.dtype == np.float32 and (np.diff(s.distance) >= 0).all()

def test_noise_of_a_level_is_what_it_says():
    q = torch.zeros(2000, 21, 4); q[..., 0] = 1
    for sigma in (.005, .1, .5):
        o = NoiseOptions(near=1, far=0, partial=0, uniform=0, near_sigma=(sigma, sigma), uneven=0)
        noisy, told = perturb(q, o, torch.Generator().manual_seed(0))
        v = quaternion_to_axis_angle(noisy.double())
        assert told.unique().numel() == 1 and abs(told[0]-sigma) < 1e-6
        assert abs(v.std()/sigma-1) < .02 and v.mean().abs() < .02*sigma

def test_partial_noise_leaves_most_joints(clips):
    q = poses_to_quaternions(clips.poses)
    noisy, _ = perturb(q, LEVELS['tangent partial'], torch.Generator().manual_seed(0))
    moved = (quaternion_distance(q, noisy) > 1e-3).sum(1)
    assert moved.min() >= 1 and moved.max() <= 7

def test_uniform_end_is_uniform():
    q = torch.zeros(3000, 21, 4); q[..., 0] = 1
    o = NoiseOptions(near=0, far=0, partial=0, random=1.)
    noisy, sigma = perturb(q, o, torch.Generator().manual_seed(0))
    angle = quaternion_distance(q, noisy)
    assert abs(angle.mean()-(np.pi/2+2/np.pi)) < .01 and (sigma-np.pi).abs().max() < 1e-6

def test_one_draw_for_all_is_the_published_scheme():
    q = torch.zeros(500, 21, 4); q[..., 0] = 1
    shared, sigma = perturb(q, NoiseOptions('quaternion', shared=True), torch.Generator().manual_seed(0))
    assert shared.unique(dim=0).shape[0] == 5 and sorted(set(sigma.tolist())) == pytest.approx([.01, .05, .1, .25, .5])
    own, _ = perturb(q, NoiseOptions('quaternion'), torch.Generator().manual_seed(0))
    assert own.unique(dim=0).shape[0] == 500 and (own[..., 1:] >= 0).all()

# ---- chunks

def chunk_of(clips, start, threads=1):
    recipe = Recipe(1000, k=5, chunk=256)
    clean = poses_to_quaternions(clips.poses).numpy()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try: return recipe.make_chunk('train', start, clean, [recipe.index(clean)])
    finally: torch.set_num_threads(before)

def test_chunk_depends_on_its_number_only(clips):
    first = chunk_of(clips, 256)
    torch.manual_seed(5); torch.rand(7)
    chunk_of(clips, 0)
    for threads in (1, 2):
        again = chunk_of(clips, 256, threads)
        assert all(torch.equal(first[n], again[n]) for n in first)

def test_global_randomness_is_left_alone(clips):
    torch.manual_seed(0); a = torch.rand(1)
    torch.manual_seed(0); make_distance_set(clips, 20); b = torch.rand(1)
    assert a == b

def test_every_clean_pose_gets_its_turn(clips):
    s = make_distance_set(clips.poses[:100], 400)
    assert set(s.source) == set(range(100)) and np.bincount(s.source).max() <= 8

def test_memory_and_file_hold_the_same(source, tmp_path):
    path = prepare(source, tmp_path/'a.safetensors', number=300, say=QUIET)
    s, f = make_distance_set(source.train_set, 300), load_parts(path)['train']
    for name in ('quaternions', 'distance', 'nearest', 'sigma', 'source', 'clean'):
        assert np.array_equal(getattr(s, name), getattr(f, name)), name

# ---- the file

def work(source, path): 
    "In a process of its own"
    torch.set_num_threads(1)
    prepare(source, path, **SMALL)

def forked(source, path):
    "Start it"
    source.setup()
    p = multiprocessing.get_context('fork').Process(target=work, args=(source, path))
    p.start()
    return p

def test_sigkill_at_any_moment(source, whole, tmp_path):
    path, start, rng, killed = tmp_path/'a.safetensors', time.monotonic(), random.Random(0), 0
    p = forked(source, tmp_path/'timed.safetensors'); p.join(60)
    assert p.exitcode == 0 and sha(tmp_path/'timed.safetensors') == sha(whole)
    length = time.monotonic()-start
    while killed < 8:
        p = forked(source, path)
        p.join(rng.uniform(.02, .7)*length)
        if p.is_alive(): os.kill(p.pid, signal.SIGKILL); killed += 1
        p.join()
        if p.exitcode == 0: assert sha(path) == sha(whole); path.unlink() # begin again
        else: assert p.exitcode == -signal.SIGKILL
    work(source, path)
    assert sha(path) == sha(whole) and {f.name for f in tmp_path.iterdir()} == {'timed.safetensors', 'a.safetensors'}

class Crash(Exception): pass

def test_crash_between_any_two_steps(source, whole, tmp_path, monkeypatch):
    "Every call that changes the disk fails once, before it or after it"
    steps = [(PiecewiseFile, 'begin'), (PiecewiseFile, 'write'), (PiecewiseFile, 'mark'), (PiecewiseFile, 'finish'),
             (PiecewiseFile, 'clean'), (os, 'replace')]
    for owner, name in steps:
        for after in (False, True):
            real, calls = getattr(owner, name), []
            def crash(*a, **k):
                calls.append(1)
                if len(calls) == 1 and not after: raise Crash
                done = real(*a, **k)
                if len(calls) == 1: raise Crash
                return done
            path = tmp_path/f'{name}{after}.safetensors'
            with monkeypatch.context() as m:
                m.setattr(owner, name, crash)
                with pytest.raises(Crash): prepare(source, path, **SMALL)
            assert sha(prepare(source, path, **SMALL)) == sha(whole), (name, after)
    assert not [f for f in tmp_path.iterdir() if f.suffix in ('.journal', '.draft', '.lock', '.part')]

def test_two_at_once_make_one(source, whole, tmp_path):
    both = [forked(source, tmp_path/'a.safetensors') for _ in range(2)]
    for p in both: p.join(60)
    assert [p.exitcode for p in both] == [0, 0] and sha(tmp_path/'a.safetensors') == sha(whole)
    assert [f.name for f in tmp_path.iterdir()] == ['a.safetensors']

def test_header_tells_everything_and_no_more(whole, source):
    with safe_open(whole, 'numpy') as f: told = json.loads(f.metadata()['posebook'])
    assert told == read_header(whole)[0]
    assert told['parts']['train']['fingerprint'] == source.train_set.fingerprint and told['noise']['kind'] == 'tangent'
    assert str(whole.parent) not in json.dumps(told)

def test_resume_refuses_other_settings(source, whole, tmp_path, monkeypatch):
    path = tmp_path/'a.safetensors'
    with monkeypatch.context() as m:
        m.setattr(PiecewiseFile, 'finish', lambda self: (_ for _ in ()).throw(Crash))
        with pytest.raises(Crash): prepare(source, path, **SMALL)
    with pytest.raises(PriorError, match='--overwrite'): prepare(source, path, **SMALL | dict(seed=2))
    said = []
    prepare(source, path, **SMALL | dict(say=said.append))
    assert 'continuing' in said[0] and sha(path) == sha(whole)
    with pytest.raises(PriorError, match='--overwrite'): prepare(source, path, **SMALL | dict(number=241))
    prepare(source, path, **SMALL | dict(number=241), overwrite=True)
    assert len(open_part(path)) == 241

@pytest.mark.parametrize('journal', ['', '{', '[]', '{"header": 1}'])
def test_damaged_journal(source, tmp_path, journal):
    (tmp_path/'.a.safetensors.journal').write_text(journal)
    with pytest.raises(PriorError, match='--overwrite'): prepare(source, tmp_path/'a.safetensors', **SMALL)

def test_anything_else_in_the_place(source, tmp_path):
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(PriorError, match='exists'): prepare(source, tmp_path/'notes.txt', **SMALL)
    assert (tmp_path/'notes.txt').read_text() == 'mine'

def damage(whole, key, value):
    "The file with a value in the first row of a tensor"
    meta, start = read_header(whole)
    content, at = bytearray(whole.read_bytes()), PiecewiseFile(whole, meta).offsets[key]
    content[at:at+4] = value
    return bytes(content)

BAD = [('train.clean', np.float32(np.nan)), ('train.quaternions', np.float32(7)), ('val.distance', np.float32(-1)),
       ('test.distance_train', np.float32(np.inf)), ('train.nearest', np.int32(10**6)), ('val.source', np.int32(-1)),
       ('train.sigma', np.float32(4))]

@pytest.mark.parametrize('key, value', BAD, ids=[k for k, _ in BAD])
def test_damaged_values(whole, tmp_path, key, value):
    (tmp_path/'a').write_bytes(damage(whole, key, value.tobytes()))
    with pytest.raises(PriorError, match=f'key {key}: expected values from'): load_parts(tmp_path/'a')

def test_hostile_headers(tmp_path):
    "Headers that lie about their length or content end in a sentence"
    for content in (b'', b'\xff'*8, (2**60).to_bytes(8, 'little')+b'{}', b'\x02\0\0\0\0\0\0\0[]', b'\x02\0\0\0\0\0\0\0{}',
                    _file({'posebook': '[]'}), _file({'posebook': '{"format": "posebook.distances", "version": 1}'}),
                    _file({'posebook': '{"format": "posebook.distances", "version": 9}'}), _file([]),
                    _file({'posebook': '{"format": "posebook.distances", "version": 1, "parts": {"train": 3}, "joints": [1], "k": 1}'})):
        (tmp_path/'a').write_bytes(content)
        with pytest.raises(PriorError, match='again|found a safetensors'): load_parts(tmp_path/'a')

def _file(metadata):
    text = json.dumps({'__metadata__': metadata}).encode()
    return len(text).to_bytes(8, 'little')+text

def test_opened_sets_travel_light(whole):
    s = open_part(whole, 'val', 1)
    copy = pickle.loads(pickle.dumps(s))
    assert len(pickle.dumps(s)) < 1000 and np.array_equal(copy.distance, s.distance) and copy.distance.shape[1] == 1
    assert isinstance(s.quaternions, np.memmap)
    with pytest.raises(PriorError, match='has no holdout part'): open_part(whole, 'holdout')

# ---- data for training

def make(tmp_path, **known):
    return DistanceData(**dict(samples=600, fps=6, mirror=True, fractions=(.7, .1, .2), batch_size=100, cache_dir=str(tmp_path)) | known)

def test_resumed_within_an_epoch(tmp_path):
    a, b = make(tmp_path).train_dataloader(), make(tmp_path).train_dataloader()
    it = iter(a); next(it); next(it)
    b.load_state_dict(a.state_dict())
    for x, y in zip(it, b, strict=True): assert all(torch.equal(x[k], y[k]) for k in x)

def test_workers_give_the_same(tmp_path):
    a, b = (list(make(tmp_path, num_workers=n).val_dataloader()) for n in (0, 1))
    assert all(torch.equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)

def test_without_a_training_part(tmp_path):
    d = make(tmp_path, fractions=(0, 0, 1))
    held = d.labels()['test']
    assert d.train_dataloader() == [] and held.distance_train is None and held.distance[held.sigma == 0].max() == 0

def test_no_more_neighbours_than_poses(tmp_path):
    with pytest.raises(PriorError, match='neighbours are wanted'): make(tmp_path, neighbours=10**6).labels()

class Field(pl.LightningModule):
    "The least model that learns distances"
    def __init__(self, joints='body'):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(84, 1)
    def training_step(self, batch, i): return (self.net(batch['quaternions'].flatten(1))-batch['distance']).abs().mean()
    def validation_step(self, batch, i): self.log('val/l1', self.training_step(batch, i), batch_size=len(batch['sigma']))
    def configure_optimizers(self): return torch.optim.Adam(self.parameters(), 1e-3)

def test_lightning_trains_and_saves_plain_values(tmp_path):
    trainer = pl.Trainer(max_epochs=1, accelerator='cpu', logger=False, enable_progress_bar=False, enable_model_summary=False,
                         default_root_dir=tmp_path)
    trainer.fit(Field(), make(tmp_path))
    trainer.save_checkpoint(tmp_path/'a.ckpt')
    kept = torch.load(tmp_path/'a.ckpt', weights_only=True)['datamodule_hyper_parameters']
    assert kept['noise']['kind'] == 'tangent' and kept['samples'] == 600 and kept['mirror'] is True
    assert torch.isfinite(trainer.callback_metrics['val/l1'])

def test_settings_from_yaml_and_the_command_line(tmp_path):
    p = ArgumentParser(exit_on_error=False)
    p.add_argument('--config', action='config')
    p.add_class_arguments(Field, 'model')
    p.add_class_arguments(DistanceData, 'data')
    p.link_arguments('model.joints', 'data.joints')
    (tmp_path/'a.yaml').write_text('data: {samples: 10, mirror: true, noise: {kind: geodesic, spread: 0.5}}\n'
                                   'model: {joints: root+body}')
    c = p.parse_args(['--config', str(tmp_path/'a.yaml'), '--data.noise.clean', '.1', '--data.fps', '15'])
    d = p.instantiate(c).data
    assert d.recipe.noise == NoiseOptions('geodesic', spread=.5, clean=.1)
    assert len(d.recipe.joints) == 22 and d.hparams.fps == 15 and d.hparams.mirror
    assert NoiseOptions() == replace(NoiseOptions(), kind='tangent') and isinstance(d.labels()['train'], DistanceSet)
