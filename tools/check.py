#!/usr/bin/env python3
"""The house rules that a machine can see (STYLE: clean notebooks, modules in step, floor rule, budgets, README, configs, wheel).

`python tools/check.py [NAME...]` runs all checks, or those named; exit code 1 if one fails. Budgets only warn."""
import ast, atexit, json, os, re, shutil, subprocess, sys, tempfile
from functools import cache
from pathlib import Path

LIB,NBS = Path('lumi_lab'),Path('nbs')
def run(*args, **kwargs): return subprocess.run([*map(str, args)], capture_output=True, text=True, **kwargs)
def rooms(): return sorted(p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
def code_cells(path): return [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type']=='code']
def exported(path): return [s for s in code_cells(path) if re.match(r'(#\|.*\n)*#\|\s*exports?\b', s)]
def own_module(path): return next((m[1] for s in code_cells(path) if (m:=re.search(r'^#\|\s*default_exp\s+(\S+)', s, re.M))), None)

@cache
def copy():
    "A copy of the tree, to compare with after a tool has gone over it"
    made = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    d = Path(made)/'tree'
    shutil.copytree('.', d, ignore=shutil.ignore_patterns('.venv*', '.git', 'data', 'checkpoints', '_proc', '_preview', '__pycache__', '*.egg-info'))
    return d

def changed(folder, pattern):
    "Files under `folder` that differ from the copy's"
    d = copy()
    names = {p.relative_to(r) for r in (Path('.'), d) for p in (r/folder).rglob(pattern) if '.ipynb_checkpoints' not in p.parts}
    return sorted(str(n) for n in names if not (d/n).exists() or not Path(n).exists() or (d/n).read_bytes()!=Path(n).read_bytes())

def clean():
    "Notebooks are as nbdev_clean leaves them"
    r = run('nbdev_clean', cwd=copy())
    return [f'not clean: {n} (run nbdev_clean)' for n in changed('nbs', '*.ipynb')] + ([r.stderr] if r.returncode else [])

def in_step():
    "Modules are what the notebooks export, and none is stale"
    r = run('nbdev_export', cwd=copy())
    made = {own_module(p) for p in rooms()}
    stale = [f'no notebook exports {p}' for p in LIB.glob('*.py') if p.stem not in made and not p.stem.startswith('_')]
    return [f'out of step: {n} (run nbdev_export)' for n in changed('lumi_lab', '*.py')] + stale + ([r.stderr] if r.returncode else [])

def floors():
    "An exported cell imports only from lower-numbered notebooks; stages never import stages"
    number = {m:p.name for p in rooms() if (m:=own_module(p)) and p.name[0].isdigit()}
    stages = {m for m in number if f'=lumi_lab.{m}:main' in Path('settings.ini').read_text() and m not in ('pipeline', 'artifact')}
    bad = []
    for p in rooms():
        if not (mod:=own_module(p)): continue
        for s in exported(p):
            for node in ast.walk(ast.parse(re.sub(r'^[%!].*$', '', s, flags=re.M))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ''] if isinstance(node, ast.ImportFrom) else []
                for used in {n.split('.')[1] for n in names if n.startswith('lumi_lab.')} & number.keys():
                    if number[used]>=p.name: bad.append(f'{p.name} imports {number[used]}')
                    if used in stages and mod in stages: bad.append(f'stage {mod} imports stage {used}')
    return bad

def flags():
    "No bare except, and none that passes over an error and goes on"
    return [f'{p.name}: {m[0]!r}' for p in rooms() for s in code_cells(p) for m in re.finditer(r'except\s*:|except( Base| )*Exception[^\n]*:\s*(pass|continue)\b|except[^\n]*:\s*continue\b', s)]

def imports():
    "Imports of tests stand in cells of their own: a cell that imports and does more is run when the site is built"
    bad = []
    for p in rooms():
        for s in code_cells(p):
            if re.search(r'^#\|\s*(exports?\b|eval:\s*false)', s, re.M): continue
            tree = ast.parse(re.sub(r'^[%!].*$', '', s, flags=re.M))
            found = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
            others = [n for n in tree.body if not isinstance(n, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)) and not ast.unparse(n).startswith('sys.path.insert')]
            if found and others and 'nbdev_export' not in s: bad.append(f'{p.name}: {ast.unparse(found[0])} stands beside other code')
    return bad

def budgets():
    "Warn where a cell, a room or its outputs outgrow their budget; refuse only the hard limits"
    bad,sizes = [],[]
    for p in rooms():
        nb = json.loads(p.read_text())
        outputs = len(json.dumps([c.get('outputs') for c in nb['cells']]))
        if outputs>150*1024: bad.append(f'{p.name}: {outputs//1024} KB of outputs (150 at most)')
        if not any(c.get('outputs') for c in nb['cells']): bad.append(f'{p.name}: no saved outputs (run tools/run_nbs.py)')
        text = [c for c in nb['cells'] if c['cell_type']=='markdown']
        words,lines = sum(len(''.join(c['source']).split()) for c in text),sum(s.count('\n')+1 for s in code_cells(p))
        notes = [f'{len(nb["cells"])} cells'] if len(nb['cells'])>60 else []
        if words/200+lines/20>15: notes.append(f'{words/200+lines/20:.0f} minutes to read')
        if not .3<=len(text)/len(nb['cells'])<=.45: notes.append(f'{len(text)/len(nb["cells"]):.0%} markdown')
        own,public = exported(p),0
        for s in own:
            if s.count('\n')>50: bad.append(f'{p.name}: an exported cell of {s.count(chr(10))+1} lines')
            public += sum(isinstance(d, (ast.FunctionDef, ast.ClassDef)) and d.name[0]!='_' for d in ast.parse(s).body)
            for f in ast.walk(ast.parse(s)):
                if isinstance(f, ast.FunctionDef): sizes.append(f.end_lineno-f.lineno+1)
                if isinstance(f, ast.FunctionDef) and f.end_lineno-f.body[0].lineno>40: bad.append(f'{p.name}: {f.name} has {f.end_lineno-f.body[0].lineno+1} lines')
        tests = sum(len(re.findall(r'\btest_\w+\(|\bassert\b', s)) for s in code_cells(p) if s not in own)
        if tests<2*public: notes.append(f'{tests} tests of {public} public names')
        if notes: print(f'  note: {p.name}: {", ".join(notes)}')
    sizes.sort()
    middle,most = sizes[len(sizes)//2],sizes[len(sizes)*9//10]
    print(f'  {len(sizes):,} functions: {middle} lines in the middle, {most} at nine tenths')
    return bad+[f'functions have {middle} lines in the middle (8 at most), {most} at nine tenths (20 at most)']*(middle>8 or most>20)

def configs():
    "Every config, shipped or of the real runs, is read by the class it is for, and every stated parameter count is true"
    from lumi_lab.config import LumiError,load_config
    from schemas import KINDS,SPECIAL,file_name,kind_of,load
    bad = []
    for p in sorted((LIB/'config').rglob('*.json')):
        if (kind := kind_of(p)) is None: bad.append(f'{p}: no class reads it (add it to tools/schemas.py)'); continue
        try: load_config(load(kind), p)
        except LumiError as e: bad.append(str(e))
    by_schema = {file_name(k):k for k in (*KINDS.values(), *SPECIAL.values())}
    for p in sorted((LIB.parent/'nbs'/'runs'/'config').rglob('*.json')):
        if not (named := json.loads(p.read_text()).get('$schema')): continue
        try: load_config(load(by_schema[Path(named).name]), p)
        except (KeyError, LumiError) as e: bad.append(f'{p}: {e}')
    return bad

def schemas():
    "The JSON Schemas are those of the classes, every shipped config names its own and is valid by it"
    import jsonschema
    from schemas import LIB as lib,file_name,kind_of,out_of_step
    if bad := out_of_step(): return bad
    for p in sorted((lib/'config').rglob('*.json')):
        schema = json.loads((lib/'schemas'/file_name(kind_of(p))).read_text())
        bad += [f'{p.name}: {e.message}' for e in jsonschema.Draft202012Validator(schema).iter_errors(json.loads(p.read_text()))]
    return bad

def readme():
    "README.md and llms.txt are what the notebooks say, and no local link of the site's preview is broken"
    r = run(sys.executable, 'tools/docs/build.py', 'all', cwd=copy())
    if r.returncode: return [l for l in r.stderr.splitlines() if 'broken link' in l] or [r.stdout+r.stderr]
    made = ('README.md', 'nbs/llms.txt')
    return [f'{name} is out of step with the notebooks (run make readme)' for name in made if not Path(name).is_file() or (copy()/name).read_text()!=Path(name).read_text()]

def no_places():
    "Nothing tracked names this machine's folders or a registry"
    r = run('git', 'grep', '-nIE', rf'{re.escape(str(Path.cwd().parent))}/|{re.escape(str(Path.home()))}/|{"extra-index"+"-url"}|{"find"+"-links"}')
    return r.stdout.splitlines()

def wheel():
    "In an empty folder, after installing the wheel, every command starts and finds its configs"
    bad = []
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        r = run(sys.executable, '-m', 'build', '--wheel', '--outdir', d/'dist', copy())
        if r.returncode: return [r.stdout[-2000:]+r.stderr[-2000:]]
        r = run(sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', d/'site', next((d/'dist').glob('*.whl')))
        if r.returncode: return [r.stderr]
        (d/'empty').mkdir()
        env = {**os.environ, 'PYTHONPATH':str(d/'site')}
        for c in sorted((d/'site'/'bin').glob('lumi_*')):
            r = run(sys.executable, c, '--help', cwd=d/'empty', env=env)
            if r.returncode or '--help' not in r.stdout: bad.append(f'{c.name} --help: {r.stderr[-500:]}')
        r = run(sys.executable, '-c', 'import lumi_lab.config as c; print(c.__file__); c.find_config("config/pretrain/tokenizer/spm32k.json"); c.find_config("pipeline/quickstart.json")', cwd=d/'empty', env=env)
        if r.returncode or str(d/'site') not in r.stdout: bad.append(f'configs are not in the wheel: {r.stdout+r.stderr}')
        shipped,here = ({p.relative_to(root).as_posix() for kind in ('*.json', '*.html') for p in root.rglob(kind)} for root in (d/'site'/'lumi_lab', LIB))
        bad += [f'not in the wheel: {n}' for n in sorted(here-shipped)]
    return bad

CHECKS = [clean, in_step, floors, flags, imports, budgets, configs, schemas, readme, no_places, wheel]
if __name__=='__main__':
    wanted,failed = [c for c in CHECKS if c.__name__ in sys.argv[1:] or len(sys.argv)==1],0
    for c in wanted:
        bad = c(); failed += bool(bad)
        print(f'{"FAILED" if bad else "ok":6} {c.__name__:10} {c.__doc__}', *bad, sep='\n         ' if bad else '', flush=True)
    print(f'{len(wanted)-failed} passed, {failed} failed')
    sys.exit(bool(failed))
