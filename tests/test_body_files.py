"Body model files: hostile, broken and odd ones"
import copyreg, functools, operator, os, pickle, subprocess, sys, tempfile
from pathlib import Path

import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from posebook.body_files import BodyError, body_data, convert_body, is_body_file, read_body, read_pickle, write_body
from posebook.cli import main

def model(V=20, S=3, **more):
    "A random model by the official keys"
    r, n = np.random.default_rng(0), 4
    w, reg = r.random((V, n)), r.random((n, V))
    return dict(v_template=r.normal(size=(V, 3)), f=r.integers(0, V, (30, 3)), weights=w/w.sum(1, keepdims=True),
        J_regressor=reg/reg.sum(1, keepdims=True), shapedirs=r.normal(size=(V, 3, S)), posedirs=np.zeros(0),
        kintree_table=np.array([[-1, 0, 1, 1], range(n)])) | more

def same(a, b, tolerance=0):
    "Whether two bodies hold the same arrays"
    return all(np.allclose(getattr(a, k), getattr(b, k), rtol=0, atol=tolerance) for k in
               ('template', 'faces', 'weights', 'joints', 'shapes', 'expressions', 'correctives', 'joint_shapes', 'regressor'))

# ---- pickles that attack

class Call:
    "Pickles as a call"
    def __init__(self, f, *args): self.f, self.args = f, args
    def __reduce__(self): return self.f, self.args

ATTACKS = {'posix.system': lambda mark: Call(os.system, f'touch {mark}'),
    'builtins.eval': lambda mark: Call(eval, f'open({str(mark)!r}, "w")'),
    'builtins.exec': lambda mark: Call(exec, f'open({str(mark)!r}, "w")'),
    'builtins.getattr': lambda mark: Call(getattr, 'x', 'upper'),
    'builtins.open': lambda mark: Call(open, str(mark), 'w'),
    'builtins.__import__': lambda mark: Call(__import__, 'os'),
    'operator.attrgetter': lambda mark: Call(operator.attrgetter, 'system'),
    'subprocess.Popen': lambda mark: Call(subprocess.Popen, ['touch', str(mark)]),
    'builtins.map': lambda mark: Call(map, os.system, [f'touch {mark}']),
    'functools.partial': lambda mark: Call(functools.partial, os.system),
    'numpy.load': lambda mark: Call(np.load, str(mark)),
    'numpy.save': lambda mark: Call(np.save, str(mark), 1),
    'numpy.fromfile': lambda mark: Call(np.fromfile, str(mark)),
    'pathlib': lambda mark: Call(Path, str(mark)),
    'posebook.body_files.convert_body': lambda mark: Call(convert_body, 'a', 'b'),
    'builtins.type': lambda mark: Call(type, 'A', (), {})}

@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('name', ATTACKS)
def test_attacks_are_refused_by_name(name, protocol, tmp_path):
    mark, path = tmp_path/'mark', tmp_path/'body.pkl'
    for x in (dict(v_template=ATTACKS[name](mark)), [ATTACKS[name](mark)], np.array([ATTACKS[name](mark)], dtype=object)):
        path.write_bytes(pickle.dumps(x, protocol))
        with pytest.raises(BodyError) as e: read_pickle(path)
        words = name.split('.')[-1] if '.' in name else name
        assert words in str(e.value).replace('copy_reg', 'copyreg') and str(path) in str(e.value)
    assert not mark.exists()

RAW = {'stack global': b'\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.',
    'global': b'cposix\nsystem\n(Vtrue\ntR.',
    'inst': b'(Vtrue\niposix\nsystem\n.',
    'obj': b'(cposix\nsystem\nVtrue\no.',
    'dotted': b'\x80\x04\x8c\x05numpy\x8c\x0cndarray.size\x93.',
    'through numpy': b'\x80\x04\x8c\x05numpy\x8c\tos.system\x93\x8c\x04true\x85R.',
    'extension': b'\x82\x01.',
    'persistent': b'Pabc\n.',
    'build on a class': b'cnumpy\nndarray\n}(S"__class__"\nI1\nsb.',
    'empty': b'',
    'cut': pickle.dumps(model())[:300],
    'text': b'hello',
    'slot state': b'cnumpy\ndtype\n(N}(S"x"\nI1\nstb.',
    'builtin as chumpy': b'cchumpy.ch\n__class__\n(tR.'}

@pytest.mark.parametrize('name', RAW)
def test_raw_opcodes(name, tmp_path):
    path = tmp_path/'body.pkl'
    path.write_bytes(RAW[name])
    with pytest.raises(BodyError, match='body.pkl'): read_body(path)

@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 255), st.integers(0, 5))
def test_flipped_bytes_never_do_more_than_fail(where, value, protocol):
    "Any broken pickle is either read or refused with an error of ours"
    data = bytearray(pickle.dumps(dict(model(V=5), name='a'), protocol))
    data[where % len(data)] = value
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/'a.pkl').write_bytes(bytes(data))
        try: read_body(Path(d)/'a.pkl')
        except BodyError: pass

def test_objects_inside_an_npz_are_held_to_the_same(tmp_path):
    mark = tmp_path/'mark'
    np.savez(tmp_path/'a.npz', **model(J_regressor=np.array(Call(os.system, f'touch {mark}'), dtype=object)))
    with pytest.raises(BodyError, match='posix.system'): read_body(tmp_path/'a.npz')
    np.savez(tmp_path/'b.npz', **model(part2num=np.array(Call(os.system, f'touch {mark}'), dtype=object)))
    assert read_body(tmp_path/'b.npz').kind == 'custom' # a key that no body needs is not even opened
    assert not mark.exists()

# ---- honest pickles

def test_every_protocol(tmp_path):
    want = body_data(model())
    for protocol in range(6):
        (tmp_path/'a.pkl').write_bytes(pickle.dumps(model(), protocol))
        assert same(read_body(tmp_path/'a.pkl'), want, 1e-15)

@pytest.mark.parametrize('form', ['csc_matrix', 'csr_matrix', 'coo_matrix', 'csc_array', 'csr_array', 'coo_array'])
@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_sparse_regressors(form, protocol, tmp_path):
    import scipy.sparse
    m = model()
    sparse = getattr(scipy.sparse, form)(m['J_regressor']*(m['J_regressor'] > .04))
    for path in (tmp_path/'a.pkl', tmp_path/'a.npz'):
        if path.suffix == '.pkl': path.write_bytes(pickle.dumps(model(J_regressor=sparse), protocol))
        else: np.savez(path, **model(J_regressor=np.array(sparse, dtype=object)))
        assert np.array_equal(read_body(path).regressor, sparse.toarray())

@functools.lru_cache
def old_class(name, module):
    "A class of a package that is not installed"
    reduce = lambda self, p: (copyreg._reconstructor, (type(self), object, None), self.state)
    return type(name, (), {'__module__': module, '__reduce_ex__': reduce})

def chumpy(name, module='chumpy.ch', **state):
    "An object of such a class"
    out = old_class(name, module)()
    out.state = state
    return out

def pickled_with(x, kinds, protocol=2):
    "Pickle classes of modules that do not exist"
    import types
    made = []
    for k in kinds:
        parts = k.__module__.split('.')
        for i in range(1, len(parts)+1):
            n = '.'.join(parts[:i])
            if n not in sys.modules: sys.modules[n] = types.ModuleType(n); made.append(n)
        setattr(sys.modules[k.__module__], k.__name__, k)
    try: return pickle.dumps(x, protocol)
    finally:
        for n in made: del sys.modules[n]

@pytest.mark.parametrize('protocol', [0, 2, 3])
def test_chumpy(protocol, tmp_path):
    m = model()
    shape = m['shapedirs'].shape
    ch = chumpy('Ch', x=m['v_template'])
    flat = chumpy('Ch', x=np.concatenate([m['shapedirs'].ravel(), np.ones(9)]))
    select = chumpy('Select', 'chumpy.reordering', a=flat, idxs=np.arange(np.prod(shape)), preferred_shape=shape)
    unknown = chumpy('MatVecMult', 'chumpy.ch', a=1)
    x = model(v_template=ch, shapedirs=select, J=unknown) # what nobody needs may be a formula
    (tmp_path/'a.pkl').write_bytes(pickled_with(x, [type(ch), type(select), type(unknown)], protocol))
    assert same(read_body(tmp_path/'a.pkl'), body_data(m), 1e-15)
    (tmp_path/'b.pkl').write_bytes(pickled_with(model(v_template=unknown), [type(unknown)], protocol))
    with pytest.raises(BodyError, match="key 'v_template'"): read_body(tmp_path/'b.pkl')

def test_pickles_of_python_2(tmp_path):
    "Text that is bytes, and the old names of modules"
    a = np.arange(6.).reshape(2, 3)
    data = b"(dp0\nS'v'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nI3\ntcnumpy\ndtype\n"
    data += b"(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'"
    data += a.tobytes().decode('latin1').encode('unicode_escape').replace(b"'", b"\\'")+b"'\ntbs."
    (tmp_path/'a.pkl').write_bytes(data)
    assert np.array_equal(read_pickle(tmp_path/'a.pkl')['v'], a)

# ---- shapes, trees, weights

def without(key): return {k: v for k, v in model().items() if k != key}

BAD = [(without('v_template'), 'v_template'),
    (without('f'), "'f'"), (without('weights'), "'weights'"), (without('kintree_table'), 'kintree_table'),
    (model(v_template=np.zeros((20, 2))), 'v_template'),
    (model(f=np.array([[0, 1, 99]])), "'f'.*0 to 19"), (model(f=np.zeros((3, 4))), "'f'"),
    (model(weights=np.ones((20, 3))), 'weights'),
    (model(weights=-np.ones((20, 4))), 'negative'),
    (model(weights=np.zeros((20, 4))), 'without weights'),
    (model(kintree_table=np.array([[-1, -1, 0, 0], range(4)])), 'one root'),
    (model(kintree_table=np.array([[1, 2, 3, 9], range(4)])), 'one root'),
    (model(kintree_table=np.array([[-1, 2, 1, 0], range(4)])), 'circle'),
    (model(kintree_table=np.arange(4)), 'kintree_table'),
    (model(posedirs=np.ones((20, 3, 5))), 'posedirs'),
    (model(posedirs=np.ones((27, 60))), 'posedirs'),
    (model(shapedirs=np.ones((19, 3, 2))), 'shapedirs'),
    (model(shapedirs=np.full((20, 3, 2), np.inf)), 'finite'),
    (model(v_template='text'), 'v_template'),
    (model(J_regressor=np.ones((3, 20))), 'J_regressor'),
    (model(J_names=['a', 'a', 'b', 'c']), 'J_names'),
    (model(num_shapes=9), 'num_shapes'),
    (model(weights=None, weights_index=np.full((20, 2), 7),
    weights_value=np.ones((20, 2))), 'weights_index')]

@pytest.mark.parametrize('arrays,words', BAD, ids=range(len(BAD)))
def test_broken_models(arrays, words):
    with pytest.raises(BodyError, match=words) as e: body_data(arrays, 'some/model.npz')
    assert str(e.value).startswith('some/model.npz: key')

def test_roots_and_empty_parts():
    want = body_data(model())
    for root in (-1, 2**32-1):
        table = np.array([[root, 0, 1, 1], range(4)])
        assert body_data(model(kintree_table=table)).parents == (-1, 0, 1, 1)
    assert body_data(model(kintree_table=np.array([[2**32-1, 0, 1, 1], range(4)], dtype=np.uint32))).parents == want.parents
    assert want.correctives.shape == (20, 3, 0) and body_data(without('posedirs')).correctives.shape == (20, 3, 0)
    assert body_data(without('shapedirs')).shapes.shape == (20, 3, 0)
    assert body_data(model(posedirs=np.zeros((20, 3, 27)))).correctives.shape == (20, 3, 0)

def test_static_joints():
    J = np.arange(12.).reshape(4, 3)
    static = body_data(model(J=J, static_joint_locs=True, J_regressor=np.zeros((4, 20))))
    assert np.array_equal(static.joints, J) and not static.joint_shapes.any()
    assert not np.allclose(body_data(model(J=J)).joints, J) # with a regressor and shapes, the shape decides
    assert np.array_equal(body_data(model(J=J), static=True).joints, J)

def test_compact_weights():
    i = np.array([[0, 1], [2, 0]]*10)
    c = np.array([[40000, 25535], [65535, 0]]*10, np.uint16)
    d = body_data(without('weights') | dict(weights_index=i, weights_value=c))
    assert np.allclose(d.weights.sum(1), 1) and d.weights[1, 2] == 1 and np.isclose(d.weights[0, 1], 25535/65535)

@pytest.mark.parametrize('total,split', [(400, (300, 100)), (20, (10, 10)), (10, (10, 0)), (16, (10, 6)), (350, (10, 10))])
def test_where_expressions_begin(total, split):
    table = np.array([[-1]+[0]*54, range(55)])
    w = np.ones((20, 55))/55
    d = body_data(model(kintree_table=table, weights=w, J_regressor=np.ones((55, 20))/20, shapedirs=np.ones((20, 3, total))))
    assert (d.kind, d.shapes.shape[2], d.expressions.shape[2]) == ('smplx', *split)

def test_files_that_are_none(tmp_path):
    for name, data in (('a.npz', b'PK no'), ('a.obj', b''), ('a.safetensors', b'xx')):
        (tmp_path/name).write_bytes(data)
        with pytest.raises((BodyError, OSError, Exception), match='.'): read_body(tmp_path/name)
    with pytest.raises(BodyError, match='no such file'): read_body(tmp_path/'no.npz')
    with pytest.raises(BodyError, match='dictionary'):
        (tmp_path/'list.pkl').write_bytes(pickle.dumps([1]))
        read_body(tmp_path/'list.pkl')

def test_safetensors(tmp_path):
    from safetensors.numpy import save_file
    save_file({k: np.ascontiguousarray(v) for k, v in model().items()}, tmp_path/'a.safetensors')
    assert same(read_body(tmp_path/'a.safetensors'), body_data(model()), 1e-15)

def test_write_leaves_nothing_when_it_fails(tmp_path):
    with pytest.raises(BodyError, match='layout'): write_body(body_data(model()), tmp_path/'a.npz', 'obj')
    with pytest.raises(BodyError, match='55 joints|9,929'): write_body(body_data(model()), tmp_path/'a.npz', 'smplx')
    with pytest.raises(BodyError, match='24 joints'): write_body(body_data(model()), tmp_path/'a.npz', 'smpl')
    assert not list(tmp_path.iterdir())

# ---- the command

def test_convert_command(tmp_path, capsys):
    (tmp_path/'model.pkl').write_bytes(pickle.dumps(model(), 2))
    for args in ([tmp_path/'model.pkl', tmp_path/'model.npz'], [tmp_path/'model.pkl', '-o', tmp_path/'other.npz']):
        assert main(['convert', *map(str, args)]) == 0
        assert '20 vertices' in capsys.readouterr().out
    assert is_body_file(tmp_path/'model.npz') and same(read_body(tmp_path/'other.npz'), body_data(model()), 1e-15)
    with np.load(tmp_path/'model.npz', allow_pickle=False) as z: assert all(z[k] is not None for k in z.files)
    assert main(['convert', str(tmp_path/'model.pkl'), str(tmp_path/'model.bvh')]) == 1
    assert '.npz' in capsys.readouterr().err
    (tmp_path/'bad.pkl').write_bytes(pickle.dumps(Call(os.system, f'touch {tmp_path/"mark"}')))
    assert main(['convert', str(tmp_path/'bad.pkl'), str(tmp_path/'bad.npz')]) == 1
    assert 'posix.system' in capsys.readouterr().err and not (tmp_path/'mark').exists() and not (tmp_path/'bad.npz').exists()

def test_motions_are_not_bodies(tmp_path):
    np.savez(tmp_path/'motion.npz', poses=np.zeros((3, 165)))
    assert not is_body_file(tmp_path/'motion.npz') and not is_body_file(tmp_path/'walk.bvh')
