#!/usr/bin/env python3
"""Train in two processes on the CPU, started by the real launchers, and compare with one process; then let a worker die.

`python tools/processes_test.py [--test NAME...] [--steps 60]` makes its own small data from the bundled speeches and needs nothing but the package. The tests, in order:
launchers (torchrun and accelerate launch against one process: same records, losses equal up to rounding), switch (two processes, then one, then two again, each killed, same curve),
stop (SIGTERM to the launcher ends with a checkpoint, and one process goes on), fsdp (asked for on a CPU: the log says that it is DDP), death (a rank is killed: the job ends with a message).
A job that takes longer than --patience seconds is taken to hang. Exit code 1 if anything fails."""
import argparse, json, os, re, signal, socket, subprocess, sys, tempfile, time
from contextlib import suppress
from pathlib import Path
from kill_test import Process, command, family, left_behind, make_data, training_config

LAUNCHERS = dict( # what stands between `python` and the module's name
    one       = ['-m'],
    torchrun  = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m'],
    accelerate= ['-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--dynamo_backend', 'no', '--main_process_port', 'PORT', '-m'],  # on a machine without GPUs its processes are joined by gloo
    fsdp      = ['-m', 'accelerate.commands.launch', '--use_fsdp', '--fsdp_version', '2', '--num_processes', '2', '--num_machines', '1', '--dynamo_backend', 'no', '--mixed_precision', 'no', '--main_process_port', 'PORT', '-m'])
ROUNDING = 2e-3 # nats; what the order of additions may do to a loss in so few steps, generously

def free_port():
    "A port that nobody listens at"
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return str(s.getsockname()[1])

def start(name, out, config=None):
    "Start a job; its log is its own"
    place = FOLDER/f'{out}_{name}_{time.monotonic_ns()}'; place.mkdir()
    launcher = [free_port() if w=='PORT' else w for w in LAUNCHERS[name]]
    return Process(command(FOLDER, config or FOLDER/'plain.json', FOLDER/out, launcher=launcher), place, FOLDER/out/'small')

def finish(process, code=0):
    "Wait for a job; a LumiError's worth of words if it hangs or ends otherwise than it should"
    try: process.popen.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill(whole=True)
        raise AssertionError(f'no end after {PATIENCE} s; the last it said: {process.said()[-1500:]}') from None
    ended = process.popen.returncode
    assert (ended==0)==(code==0), f'exit code {ended}: {process.said()[-2500:]}'
    return process

def kill_after(process, step):
    "Kill the whole job once the checkpoint of `step` is there"
    assert process.wait(lambda: (process.run/f'step_{step}'/'manifest.json').exists()), f'ended before step {step}: {process.said()[-2500:]}'
    process.kill(whole=True)

def records(run): return [json.loads(l) for l in (run/'metrics.jsonl').read_text().splitlines()]

def compare(a, b):
    "Largest difference of a number that both runs logged, by name; they must have logged the same steps"
    x,y = records(a),records(b)
    shape = lambda rs: [(r['step'], sorted(k for k in r if k in ('loss', 'held_out_loss', 'bits_per_byte', 'samples'))) for r in rs]
    assert shape(x)==shape(y), f'other records: {len(x)} and {len(y)}'
    return {k:max(abs(p[k]-q[k]) for p,q in zip(x, y) if k in p) for k in ('loss', 'held_out_loss', 'grad_norm')}

def close(a, b):
    "`compare`, and refuse more than rounding"
    found = compare(a, b)
    assert found['loss']<ROUNDING and found['held_out_loss']<ROUNDING, f'more than rounding: {found}'
    return ', '.join(f'{k} {v:.1e}' for k,v in found.items())

def sound(run):
    "The final checkpoint and all it was made from are whole"
    from lumi_lab.artifact import verify_artifact
    assert not (bad:=verify_artifact(run/'final')), bad

def test_launchers():
    "One process, torchrun, accelerate launch: the same curve"
    seconds,said = {},{}
    for name in ('one', 'torchrun', 'accelerate'):
        process = finish(start(name, name)); seconds[name],said[name] = process.age(),process.said()
        sound(FOLDER/name/'small')
        assert ('2 processes' if name!='one' else '1 process ') in said[name], f'{name}: the log does not tell the number of processes: {said[name][:1500]}'
    times = ', '.join(f'{n} {s:.1f} s' for n,s in seconds.items())
    return f"largest differences from one process: torchrun {close(FOLDER/'one/small', FOLDER/'torchrun/small')}; accelerate launch {close(FOLDER/'one/small', FOLDER/'accelerate/small')}; {times}"

def test_switch():
    "Two processes, one, two: each killed, the next goes on"
    for name,step in (('torchrun', STEPS//3//10*10), ('one', 2*STEPS//3//10*10)): kill_after(start(name, 'switch'), step)
    process = finish(start('torchrun', 'switch'))
    assert 'going on from' in process.said(), process.said()[:1500]
    sound(FOLDER/'switch/small')
    return f"largest differences from one process without a break: {close(FOLDER/'one/small', FOLDER/'switch/small')}"

def test_stop():
    "SIGTERM to torchrun, as a cluster sends it: a checkpoint, an end, and one process goes on"
    process = start('torchrun', 'stop', FOLDER/'long.json')
    assert process.wait(lambda: (process.run/'step_10'/'manifest.json').exists()), process.said()[-2500:]
    told = time.monotonic(); process.popen.send_signal(signal.SIGTERM)
    with suppress(AssertionError): finish(process) # torchrun itself ends with another code after a signal
    took = time.monotonic()-told
    assert not (left:=left_behind(FOLDER/'long.json')), f'{len(left)} processes are still there'
    stopped = re.search(r'stopped at step ([\d,]+)', process.said())
    assert stopped, f'no word of stopping: {process.said()[-2500:]}'
    step = int(stopped[1].replace(',', ''))
    assert (process.run/f'step_{step}'/'manifest.json').exists(), f'step_{step} was not saved'
    process = start('one', 'stop', FOLDER/'long.json')
    assert process.wait(lambda: f'at step {step:,}' in process.said()), f'did not go on at step {step}: {process.said()[-2500:]}'
    process.kill(whole=True)
    return f'stopped at step {step} within {took:.1f} s, saved, and one process went on from there'

def test_fsdp():
    "Sharding asked for on a CPU: Accelerate falls back to DDP, and the log must say so"
    process = finish(start('fsdp', 'fsdp'))
    line = next((l for l in process.said().splitlines() if 'DDP' in l and 'FSDP' in l), None)
    assert line, f'no line of the log has both DDP and FSDP: {process.said()[:2500]}'
    return f"said: {line.strip()[:160]}; largest differences: {close(FOLDER/'one/small', FOLDER/'fsdp/small')}"

def test_death():
    "Kill one of two ranks: the job ends soon, not with 0, with a message, and leaves nobody behind"
    res = []
    for launcher,rank in (('torchrun', 1), ('accelerate', 0)):
        process = start(launcher, f'death_{rank}', FOLDER/'long.json')
        assert process.wait(lambda: (process.run/'step_10'/'manifest.json').exists()), process.said()[-2500:]
        workers = [p for p in family(process.popen.pid)[1:] if f'{rank}'==rank_of(p)]
        assert len(workers)==1, f'{len(workers)} processes of rank {rank}'
        os.kill(workers[0], signal.SIGKILL); killed = time.monotonic()
        try: process.popen.wait(60)
        except subprocess.TimeoutExpired: process.kill(whole=True); raise AssertionError(f'{launcher}: no end 60 s after rank {rank} was killed: {process.said()[-1500:]}') from None
        took = time.monotonic()-killed
        assert process.popen.returncode not in (0, None), 'exit code 0'
        message = re.search(r'.*(Signal 9|SIGKILL|exitcode: -9).*', process.said())
        assert message, f'no message: {process.said()[-2500:]}'
        assert not (left:=left_behind(FOLDER/'long.json')), f'{len(left)} processes are still there'
        res.append(f'{launcher}: rank {rank} killed, ended after {took:.1f} s with exit code {process.popen.returncode}, {message[0].strip()[:110]!r}')
    return '; '.join(res)

def rank_of(pid):
    "The rank of a worker, by its environment"
    text = subprocess.run(['ps', 'eww', '-o', 'command=', '-p', str(pid)], capture_output=True, text=True).stdout
    return (re.search(r' RANK=(\d+)', text) or [None, None])[1] if 'lumi_lab.pretrain' in text else None

TESTS = dict(launchers=test_launchers, switch=test_switch, stop=test_stop, fsdp=test_fsdp, death=test_death)

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--test', nargs='+', choices=TESTS, default=list(TESTS)); parser.add_argument('--steps', type=int, default=60); parser.add_argument('--patience', type=float, default=180, help='seconds after which a job is taken to hang')
    args = parser.parse_args()
    STEPS,PATIENCE,begun,failed = args.steps,args.patience,time.monotonic(),0
    if set(args.test) & {'switch', 'fsdp'} and 'launchers' not in args.test: args.test = ['launchers', *args.test] # they compare with its run
    with tempfile.TemporaryDirectory(prefix='lumi_processes_') as d:
        FOLDER = Path(d).resolve()
        make_data(FOLDER)
        common = dict(dropout=0., per_device_train_batch_size=2, gradient_accumulation_steps=4, save_steps=10, save_total_limit=2, logging_steps=5, eval_steps=20, sample_steps=30)
        training_config(FOLDER, 'plain', max_steps=STEPS, **common)
        training_config(FOLDER, 'long', max_steps=1_000_000, lr_schedule='constant', **common)
        for name in args.test:
            since = time.monotonic()
            try: print(f'{name}: {TESTS[name]()} ({time.monotonic()-since:.0f} s)', flush=True)
            except AssertionError as e: failed += 1; print(f'{name} FAILED ({time.monotonic()-since:.0f} s): {e}', flush=True)
    print(f'{len(args.test)-failed} of {len(args.test)} tests passed in {time.monotonic()-begun:.0f} s')
    sys.exit(bool(failed))
