#!/usr/bin/env python3
"""Make a reference of a run that a shipped config has made: its log, thinned, as `lumi_lab/reference_runs/NAME`, where `plot_run` finds it.

`python tools/reference_runs.py quickstart_pretrain=checkpoints/pretrain/nano …`"""
import json, sys
from pathlib import Path
from lumi_lab.config import read_json
from lumi_lab.runtime import read_metrics
from lumi_lab.watch import REFERENCE_RUNS

LIMIT = 48_000                                             # bytes of a log

def thinned(
    records, # As in `metrics.jsonl`
    limit=LIMIT, # Bytes that they may have as JSON lines
): # All looks at held-out text, and as many reports of training as there is room for, evenly, the last among them; as one text
    "Thin a log"
    keep = ('step', 'loss', 'lr', 'grad_norm', 'tokens', 'held_out_loss', 'perplexity', 'bits_per_byte')
    short = lambda v: float(f'{v:.5g}') if isinstance(v, float) else v
    records = [{k:short(v) for k,v in r.items() if k in keep or 'log_prob' in k or 'change' in k or 'accuracy' in k} for r in records]
    looks,reports = [r for r in records if 'loss' not in r and len(r)>1],[r for r in records if 'loss' in r]
    for step in range(1, len(reports)+1):
        some = sorted(looks+reports[::-1][::step], key=lambda r: r['step'])
        text = ''.join(json.dumps(r)+'\n' for r in some)
        if len(text)<=limit: return text
    raise SystemExit(f'the looks at held-out text alone have more than {limit:,} bytes')

def main(runs):
    "Write the references of some runs, NAME=FOLDER"
    for name,_,run in (r.partition('=') for r in runs):
        run,place = Path(run),REFERENCE_RUNS/name
        place.mkdir(parents=True, exist_ok=True)
        (place/'metrics.jsonl').write_text(thinned(read_metrics(run/'metrics.jsonl')), encoding='utf-8')
        (place/'run.json').write_text(json.dumps(read_json(run/'run.json'), indent=1)+'\n', encoding='utf-8')
        print(name, (place/'metrics.jsonl').stat().st_size, 'bytes')

if __name__=='__main__': main(sys.argv[1:])
