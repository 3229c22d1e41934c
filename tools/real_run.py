#!/usr/bin/env python3
"""A recipe of stages in a given time: measure the pretraining for some steps, size it to the hours, run everything, and gather what is worth keeping.

`python tools/real_run.py --recipe config/tiny.json --hours 0.4 --out kept`

Run it in the folder in which `data` and `checkpoints` shall stand, with the recipe's configs below it. Killed, or out of time, the same command goes on: stages that are done are fresh, and the pretraining has its checkpoints."""
import argparse, json, shutil, statistics, subprocess, sys, time
from pathlib import Path
from lumi_lab.config import load_config, read_json, find_config
from lumi_lab.pipeline import PipelineConfig, run_pipeline, summary
from lumi_lab.runtime import read_metrics

def run_stage(stage, **flags):
    "Run a stage in a process of its own, so that its memory is free afterwards; flags that are None are left out"
    words = [w for k,v in flags.items() if v is not None for w in (f'--{k}', *map(str, v if isinstance(v, list) else [v]))]
    subprocess.run([sys.executable, '-m', f'lumi_lab.{stage}', *words], check=True)

def sized(
    training, # A training config, as JSON
    tokens_per_second, # Of the trial
    sequence_length, # Of the architecture
    seconds, # For the whole pretraining
): # The config with as many steps as that is enough for, at most as many as it asked for; looks and checkpoints as often as before, by share
    "Size a training to the time"
    per_step = training['per_device_train_batch_size']*training.get('gradient_accumulation_steps', 1)*sequence_length
    steps = max(10, min(training['max_steps'], int(.93*seconds*tokens_per_second/per_step)))       # looks and checkpoints take some
    share = steps/training['max_steps']
    scaled = {k:max(1, round(training[k]*share)) for k in ('warmup_steps', 'eval_steps', 'save_steps', 'sample_steps') if k in training}
    return {**training, **scaled, 'max_steps':steps, 'schedule_steps':None}

def trial(flags, training, steps, place):
    "Tokens a second over the second half of some steps"
    config = place/'trial.json'
    config.write_text(json.dumps({**training, 'max_steps':steps, 'schedule_steps':None, 'warmup_steps':1, 'logging_steps':max(1, steps//10), **dict.fromkeys(('eval_steps', 'save_steps', 'sample_steps'), 10*steps)}))
    shutil.rmtree(place/'trial', ignore_errors=True)
    run_stage('pretrain', **{**flags, 'config':config, 'output_dir':place/'trial'})
    log = next((place/'trial').glob('*/metrics.jsonl'))
    speeds = [r['tokens_per_second'] for r in read_metrics(log) if 'tokens_per_second' in r]
    shutil.rmtree(place/'trial')
    return statistics.median(speeds[len(speeds)//2:])

def gather(done, out, models=True):
    "Logs, results and reports of all stages in one folder, and the models in bfloat16 with their tokenizer if they are wanted"
    import torch
    from safetensors.torch import load_file, save_file
    for d in done:
        folder = Path(d['folder'])
        place = out/folder
        place.mkdir(parents=True, exist_ok=True)
        run = folder.parent if (folder/'training_state').is_dir() else folder
        for name in ('metrics.jsonl', 'run.json'):
            if (run/name).is_file(): shutil.copy(run/name, place/name)
        for p in folder.iterdir():
            if p.suffix in ('.md', '.json', '.jsonl') and p.stat().st_size<(4e6 if models else 5e4) or models and p.suffix=='.model': shutil.copy(p, place/p.name)
        if models and (folder/'model.safetensors').is_file():
            save_file({k:v.to(torch.bfloat16) for k,v in load_file(folder/'model.safetensors').items()}, place/'model.safetensors', metadata={'format':'pt'})

def main():
    "Command line"
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--recipe', required=True, help='pipeline config')
    p.add_argument('--hours', type=float, required=True, help='for the pretraining, the trial with it')
    p.add_argument('--out', required=True, type=Path, help='where logs, results and models in bfloat16 go')
    p.add_argument('--trial_steps', type=int, default=50)
    p.add_argument('--no_models', action='store_true', help='keep logs, results and reports only, files of at most 50 kB')
    args = p.parse_args()
    begun,recipe = time.time(),load_config(PipelineConfig, args.recipe)
    at = next(i for i,s in enumerate(recipe.stages) if s.stage=='pretrain')
    stage = recipe.stages[at]
    run_pipeline(recipe.model_copy(update=dict(stages=recipe.stages[:at])))
    args.out.mkdir(parents=True, exist_ok=True)
    config = args.out/'pretrain_sized.json'
    if not config.is_file():                                                                       # a run that goes on keeps its size
        start,training = time.time(),read_json(find_config(stage.flags['config']))
        training.pop('$schema', None)
        length = read_json(find_config(training['architecture']))['sequence_length']
        speed = trial(stage.flags, training, args.trial_steps, args.out)
        training = sized(training, speed, length, 3600*args.hours-(time.time()-start))
        print(f"{speed:,.0f} tokens a second: {training['max_steps']:,} steps", flush=True)
        config.write_text(json.dumps(training, indent=2))
    run_stage('pretrain', **{**stage.flags, 'config':config, 'max_hours':args.hours})
    if not (Path(stage.makes)/'manifest.json').is_file(): raise SystemExit(f'out of time before {stage.makes} was there; the same command goes on')
    stages = [s.model_copy(update=dict(flags={**s.flags, 'config':str(config)})) if i==at else s for i,s in enumerate(recipe.stages)]
    recipe = recipe.model_copy(update=dict(stages=stages))
    done = run_pipeline(recipe)
    gather(done, args.out, not args.no_models)
    print(summary(done, recipe)); print(f'{(time.time()-begun)/60:.1f} minutes in all; kept in {args.out}')

if __name__=='__main__': main()
