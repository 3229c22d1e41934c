#!/usr/bin/env python3
"""Kill a training run with SIGKILL at random moments until it is finished, and compare it with an unbroken one, bit for bit.

`python tools/kill_test.py --data_dir data/processed/quickstart_256 --tokenizer_dir data/models/tokenizers/spm_4k [--steps 60] [--seed 1] [--set '{"mixed_precision": "bf16"}']`
Weights, optimizer state, random generators (all in the digest of `final`) and every logged number must be equal. Exit code 1 if not."""
import argparse, json, random, subprocess, sys, tempfile
from pathlib import Path
from lumi_lab.artifact import load_manifest
from lumi_lab.config import find_config

def records(run): return [{k:v for k,v in json.loads(l).items() if k not in ('tokens_per_second', 'mfu')} for l in (run/'metrics.jsonl').read_text().splitlines()]

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data_dir', required=True); parser.add_argument('--tokenizer_dir', required=True)
    parser.add_argument('--steps', type=int, default=60); parser.add_argument('--seed', type=int, default=1); parser.add_argument('--set', type=json.loads, default={}, help='further keys of the training config')
    parser.add_argument('--least', type=float, default=4, help='seconds a run lives, at least'); parser.add_argument('--most', type=float, default=14)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as d:
        config = json.loads(find_config('pretrain/training/quickstart.json').read_text())
        config |= dict(name='kill', max_steps=args.steps, warmup_steps=5, save_steps=5, eval_steps=20, eval_rows=16, sample_steps=30, sample_max_new_tokens=4, logging_steps=3, dropout=0.1, save_total_limit=2,
            gradient_accumulation_steps=2, per_device_train_batch_size=2) | args.set
        (Path(d)/'kill.json').write_text(json.dumps(config))
        arch = json.loads(find_config(config['architecture']).read_text())['name']
        command = lambda out: [sys.executable, '-m', 'lumi_lab.pretrain', '--config', f'{d}/kill.json', '--data_dirs', args.data_dir, '--tokenizer_dir', args.tokenizer_dir, '--output_dir', f'{d}/{out}']
        subprocess.run(command('whole'), check=True, capture_output=True)
        whole,killed,kills = Path(d)/'whole'/arch,Path(d)/'killed'/arch,0
        while not (killed/'final'/'manifest.json').exists():
            process = subprocess.Popen(command('killed'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            try: said = process.communicate(timeout=draw.uniform(args.least, args.most))[0]
            except subprocess.TimeoutExpired: process.kill(); said = process.communicate()[0]; kills += 1
            if process.returncode not in (0, -9): sys.exit(said)
            print(kills, next((l for l in said.splitlines() if 'going on from' in l or 'fresh start' in l), 'killed before it began')[:110], flush=True)
        same = load_manifest(whole/'final').digest==load_manifest(killed/'final').digest, records(whole)==records(killed)
    print(f'{kills} kills; same digest: {same[0]}; same log: {same[1]}')
    sys.exit(not all(same))

if __name__=='__main__': main()
