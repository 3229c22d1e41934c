#!/usr/bin/env python3
"""Which class reads which shipped config; JSON Schemas of these classes, so that an editor completes and checks the keys.

`python tools/schemas.py` writes `lumi_lab/schemas/*.json` anew, and puts into each shipped config a `$schema` that leads there (the reader skips that key)."""
import importlib, json, os, re
from pathlib import Path

LIB = Path(__file__).resolve().parents[1]/'lumi_lab'
KINDS = {'architectures':'budget.ArchitectureConfig', 'pretrain/corpus':'recipe.CorpusConfig', 'pretrain/sources':'documents.SourceConfig', 'pretrain/evaluation_sets':'decontamination.EvaluationSet',
    'pretrain/tokenizer':'train_tokenizer.TokenizerConfig', 'pretrain/packing':'pack_dataset.PackingConfig', 'pretrain/training':'budget.TrainingConfig', 'evaluation':'evaluate_pretrain.EvaluationConfig',
    'pipeline':'pipeline.PipelineConfig', 'chat':'chat.ChatTemplate', 'sft/datasets':'prepare_sft_corpus.SFTCorpusConfig', 'sft/training':'finetuning.FinetuningConfig', 'dpo/datasets':'prepare_dpo_corpus.DPOCorpusConfig', 'dpo/training':'train_dpo.DPOConfig'}
SPECIAL = {'evaluation/smoke_prompts':'instruction_checks.SmokePrompts', 'evaluation/sft_standard':'evaluate_sft.SFTEvaluationConfig', 'evaluation/sft_quickstart':'evaluate_sft.SFTEvaluationConfig',
    'evaluation/dpo_standard':'evaluate_dpo.DPOEvaluationConfig', 'evaluation/dpo_quickstart':'evaluate_dpo.DPOEvaluationConfig'}

def kind_of(
    path, # Of a shipped config
): # Its class, as `module.Class`; None if nobody reads it
    "Say which class reads a config"
    inside = Path(path).resolve().relative_to(LIB/'config').with_suffix('').as_posix()
    return SPECIAL.get(inside) or KINDS.get(inside.rpartition('/')[0])

def load(
    kind, # `module.Class`
): # A subclass of `Config`
    "Import a class"
    module,name = kind.split('.')
    return getattr(importlib.import_module(f'lumi_lab.{module}'), name)

def file_name(
    kind, # `module.Class`
): # snake_case.json
    "Where the schema of a class stands"
    words = re.findall(r'[A-Z]+(?=[A-Z][a-z])|[A-Z][a-z]+|[A-Z]+', kind.split('.')[1].removesuffix('Config'))
    return '_'.join(words).lower()+'.json'

def expected(): # Path → text
    "All schemas, and all shipped configs with the line that leads to theirs"
    from lumi_lab.config import json_schema
    res = {LIB/'schemas'/file_name(k):json.dumps({'$schema':'https://json-schema.org/draft/2020-12/schema', **json_schema(load(k))}, indent=1, ensure_ascii=False)+'\n' for k in sorted({*KINDS.values(), *SPECIAL.values()})}
    for p in sorted((LIB/'config').rglob('*.json')):
        if not (kind := kind_of(p)): continue
        text = re.sub(r'\A\{\s*"\$schema": "[^"]*",', '{', p.read_text(encoding='utf-8'))
        gap = re.match(r'\{(\s*)', text)[1] or ' '
        res[p] = '{'+gap+f'"$schema": "{Path(os.path.relpath(LIB/"schemas"/file_name(kind), p.parent)).as_posix()}",'+text[1:]
    return res

def out_of_step(): # Sentences
    "What differs from `expected`"
    want = expected()
    bad = [f'{p.relative_to(LIB.parent)} is out of step (run python tools/schemas.py)' for p,text in want.items() if not p.is_file() or p.read_text(encoding='utf-8')!=text]
    return bad+[f'no class has the schema {p.name}' for p in (LIB/'schemas').glob('*.json') if p not in want]

if __name__=='__main__':
    (LIB/'schemas').mkdir(exist_ok=True)
    for p,text in expected().items(): p.write_text(text, encoding='utf-8')
