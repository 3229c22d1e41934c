#!/usr/bin/env python3
"""Train a base and its neighbours, one change each, and write a row of results for every one.

`python tools/ablations.py --config config/ablations.json --out ablations [NAME…]`, in the folder where the data stand. What is done is not done again."""
import argparse, json
from pathlib import Path
from lumi_lab.artifact import load_manifest
from lumi_lab.budget import ArchitectureConfig, count_parameters
from lumi_lab.config import read_json
from lumi_lab.runtime import read_metrics
from real_run import run_stage

def varied(base, row):
    "The base with what a row changes"
    return {k:{**v, **row.get(k, {})} if isinstance(v, dict) else row.get(k, v) for k,v in base.items()} | {k:v for k,v in row.items() if k not in base}

def train(setting, place):
    "Train, in one phase or two; the folder of the model"
    arch = {**setting['architecture']}
    arch['n_parameters'] = count_parameters(ArchitectureConfig.model_construct(**arch))['total']
    (place/'architecture.json').write_text(json.dumps(arch))
    training = {k:v for k,v in setting['training'].items() if v is not None or k=='schedule_steps'} | dict(architecture='architecture.json')
    steps = training['max_steps']
    phases = [('only', setting, steps)] if 'then' not in setting else [('a', setting, steps//2), ('b', {**setting, **setting['then']}, steps)]
    start = None
    for name,s,until in phases:
        (place/f'{name}.json').write_text(json.dumps({**training, 'name':f"{setting['name']}_{name}", 'max_steps':until, 'schedule_steps':steps}))
        run_stage('pretrain', config=place/f'{name}.json', data_dirs=s['data_dirs'], data_weights=s.get('data_weights'), tokenizer_dir=s['tokenizer_dir'], output_dir=place/name, resume_from_checkpoint=start)
        start = place/name/arch['name']/'final'
    return place/phases[-1][0]/arch['name']

def main():
    "Command line"
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--config', required=True, type=Path)
    p.add_argument('--out', required=True, type=Path)
    p.add_argument('names', nargs='*', help='rows; all if left out')
    args = p.parse_args()
    plan = read_json(args.config)
    for row in plan['rows']:
        place = args.out/row['name']
        if args.names and row['name'] not in args.names or (place/'row.json').is_file(): continue
        place.mkdir(parents=True, exist_ok=True)
        setting = varied(plan['base'], row)
        run = train(setting, place)
        held_out = setting['data_dirs'][0] if setting['tokenizer_dir']!=plan['base']['tokenizer_dir'] else plan['base']['data_dirs'][0]    # all are scored on the same documents
        run_stage('evaluate_pretrain', config=plan['config'], model_path=run/'final', tokenizer_dir=setting['tokenizer_dir'], data_dir=held_out, output_dir=place/'evaluation')
        results,log = read_json(place/'evaluation'/'results.json'),[r for r in read_metrics(run/'metrics.jsonl') if 'tokens_per_second' in r]
        speeds = sorted(r['tokens_per_second'] for r in log)
        manifest = load_manifest(run/'final')
        (place/'row.json').write_text(json.dumps(dict(name=row['name'], says=row['says'], n_parameters=results['model']['n_parameters'], tokens=log[-1]['tokens'], tokens_per_second=speeds[len(speeds)//2],
            bits_per_byte=results['held_out'][0]['bits_per_byte'], wikitext_bits_per_byte=results['wikitext']['bits_per_byte'], wikitext_word_perplexity=results['wikitext']['word_perplexity'],
            model=manifest.digest, inputs=[(i.role, i.digest) for i in manifest.inputs]), indent=1)+'\n')

if __name__=='__main__': main()
