#!/usr/bin/env python3
"""One contestant of the race between `train_dpo` and TRL's DPOTrainer, in a process of its own (nbs/benchmarks/dpo.ipynb uses this).

`python tools/dpo_race.py NAME --base DIR --data DIR --tokenizer DIR --config JSON --steps N --out FILE.json` trains the fine-tuned model `base` on the pairs of `data` as the config says, for N steps, and writes speed, peak memory and the margins of held-out pairs; `lumi_live` and `trl_live` ask the reference in every step, the others once"""
import argparse, functools, json, shutil, sys, tempfile, time
from pathlib import Path
from unittest.mock import patch
import numpy as np
import sft_race
from sft_race import Stopwatch,adapters,quiet,random_base,same_run,save_merged,told,write_documents

NAMES = {'lumi':'Lumi-Lab', 'lumi_live':'Lumi-Lab, adapters off', 'trl':'TRL, reference before', 'trl_live':'TRL, reference in each step'}
LOSSES = dict(sigmoid=dict(), ipo=dict(loss='ipo', length_normalised=True), smoothed=dict(label_smoothing=.2)) # those that both have, by what ours are told
why_not = functools.partial(sft_race.why_not, names=NAMES)
run = functools.partial(sft_race.run, script=__file__)

# --- the pairs ---

def pairs(data, split='train'):
    "The packed pairs, and what TRL reads: ids of prompts, chosen and rejected answers"
    from lumi_lab.packing import PackedDataset
    packed = PackedDataset.open(data, split, kind='dpo')
    starts,flat = packed.tokens.starts,np.fromfile(Path(data)/f'{split}.mask', np.uint8)
    found = dict(prompt_ids=[], chosen_ids=[], rejected_ids=[])
    for k in range(packed.n_documents//2):
        ids,marks = zip(*((packed.tokens.document(i).tolist(), flat[starts[i]:starts[i+1]]) for i in (2*k, 2*k+1)))
        asked = [int(m.argmax()) for m in marks]
        if asked[0]!=asked[1] or ids[0][:asked[0]]!=ids[1][:asked[0]] or not all(m[asked[0]:].all() for m in marks): sys.exit(f'pair {k} of {data} has two prompts, or an answer that is not at its end')
        for name,part in zip(found, (ids[0][:asked[0]], ids[0][asked[0]:], ids[1][asked[0]:])): found[name].append(part)
    return packed,found

def pairs_of(packed, row):
    "Numbers of the pairs of a row, as they stand in it"
    firsts,starts,_ = packed.plan.stretches
    begins = starts[firsts[row]:firsts[row+1]]
    return (np.searchsorted(packed.tokens.starts, begins[begins>=0])//2).tolist()

def _write(folder, sequence_length, splits, top, vocab_size):
    "Publish packed pairs: for each split documents and marks, two by two"
    from lumi_lab.artifact import publish
    with publish(folder, 'dpo', dict(sequence_length=sequence_length), [], manifest_name='final_manifest.json') as draft:
        for split,(documents,marks) in splits.items(): write_documents(draft, split, documents, marks, vocab_size, 2*sequence_length, 2, pairs=len(documents)//2)
        draft.top.update(top)
    return folder

def first_pairs(
    data, # Packed pairs
    folder, # Gets fewer
    n_train, # Pairs to train on
    n_val=8, # Held-out ones
    sequence_length=None, # Of a dialogue, at most, if it is to be another: rows are twice as long
): # The folder
    "Take the first pairs of each split, where a race needs no more; they are in an order drawn by lot"
    from lumi_lab.artifact import load_manifest
    splits,top,largest = {},load_manifest(data).top,0
    for split,n in (('train', n_train), ('val', n_val)):
        packed,found = pairs(data, split)
        some = [(p, a) for p,*both in zip(*(v[:n] for v in found.values())) for a in both]
        splits[split] = [p+a for p,a in some],[np.arange(len(p)+len(a))>=len(p) for p,a in some]
        largest = max(largest, int(packed.tokens.tokens.max())+1)
    return _write(folder, sequence_length or packed.context, splits, {k:top[k] for k in ('tokenizer_config_hash', 'template')}, largest)

def random_pairs(
    folder, # Gets `base`, `tokenizer` and `data`
    architecture='architectures/nano.json', # Shape of the base
    sequence_length=64, # Of a dialogue, at most
    n_pairs=100, # Four of five to train on
): # The three folders, by name
    "Write an untrained base, its vocabulary, and pairs of random ids"
    from lumi_lab.chat import load_template
    from lumi_lab.config import resolved
    from lumi_lab.tokenizer import BOS
    folder,draw = Path(folder),np.random.default_rng(2)
    tokenizer,splits = random_base(folder, architecture),{}
    V,L = tokenizer.vocab_size,sequence_length
    ids = lambda n: draw.integers(300, V, n).tolist()
    for split,n in (('train', n_pairs*4//5), ('val', n_pairs//5)):
        documents,marks = [],[]
        for size in draw.integers(4, L//2, n):
            prompt = [BOS, *ids(size-1)]
            for answer in draw.integers(2, L//2, 2): documents.append(prompt+ids(answer)); marks.append(np.arange(size+answer)>=size)
        splits[split] = documents,marks
    _write(folder/'data', L, splits, dict(tokenizer_config_hash=tokenizer.sha256, template=resolved(load_template('chatml'))), V)
    return {name:folder/name for name in ('base', 'data', 'tokenizer')}

# --- the contestants: each trains, and gives the folder of its merged model ---

def lumi(t, args, folder, watch, rows_at_once):
    "Our own stage function; the seconds that its reference takes are those of the training pairs"
    import accelerate, torch._dynamo, torch.profiler, lumi_lab.base_model, lumi_lab.dpo, lumi_lab.lora, lumi_lab.reference   # what the first step would import, too
    from lumi_lab.train_dpo import train_dpo
    t,score = told(watch, t, rows_at_once),lumi_lab.reference._scored
    def timed(accelerator, base, dataset, rows_at_once):
        begun = time.perf_counter()
        res = score(accelerator, base, dataset, rows_at_once)
        if dataset.split=='train': watch.reference = time.perf_counter()-begun
        return res
    watch.start()
    with patch.object(lumi_lab.reference, '_scored', timed): train_dpo(t, args.base, [args.data], args.tokenizer, folder/'run', force=True)
    return folder/'run/final'

def trl_trainer(t, base, dataset, settings, order=None, watch=None, reference=None):
    "`DPOTrainer` that takes our ids as they are; in an order of ours, if one is given"
    import transformers
    from torch.utils.data import DataLoader
    from trl import DPOTrainer
    class Given(DPOTrainer):
        def _prepare_dataset(self, dataset, *_): return dataset
        def _precompute_ref_logps(self, *arguments):
            begun = time.perf_counter()
            res = super()._precompute_ref_logps(*arguments)
            if watch: watch.reference = time.perf_counter()-begun
            return res
        def get_train_dataloader(self):
            if order is None: return super().get_train_dataloader()
            return DataLoader(self._remove_unused_columns(self.train_dataset), batch_sampler=order, collate_fn=self.data_collator)
        def training_step(self, model, inputs, *more, **named):
            self.tokens,self.pairs = getattr(self, 'tokens', 0)+inputs['attention_mask'].sum(),getattr(self, 'pairs', 0)+len(inputs['input_ids'])//2
            loss = super().training_step(model, inputs, *more, **named)
            self.summed = getattr(self, 'summed', 0.)+float(loss)
            return loss
    class Watch(transformers.TrainerCallback):
        def on_step_end(self, arguments, state, control, model=None, **named):
            if not watch: return
            watch.step(trainer.tokens, trainer.pairs, sum(p.numel() for p in model.parameters() if p.requires_grad), trainer.summed)
            trainer.tokens,trainer.pairs,trainer.summed = 0,0,0.
    trainer = Given(str(base), ref_model=reference, args=settings, train_dataset=dataset, processing_class=transformers.AutoTokenizer.from_pretrained(base), peft_config=adapters(t.lora), callbacks=[Watch()])
    return trainer

def preference_settings(t, live, **same):
    "`DPOConfig` of TRL: our loss in its words, nothing cut"
    from trl import DPOConfig
    if t.loss=='orpo' or t.sft_weight or (t.loss=='ipo')!=t.length_normalised: raise SystemExit('the race is over sigmoid, and over ipo with length_normalised')
    name = 'aot' if t.label_smoothing else t.loss                               # its sigmoid has no smoothing; aot of a single pair is the smoothed sigmoid
    return DPOConfig(**same, loss_type=[name], beta=t.beta, label_smoothing=t.label_smoothing, max_length=None, precompute_ref_log_probs=not live, disable_dropout=True)

def as_dataset(found):
    "Lists of ids as TRL's trainer reads them"
    import datasets
    return datasets.Dataset.from_dict(found, features=datasets.Features({k:datasets.Sequence(datasets.Value('int32')) for k in found}))

def trl(t, args, folder, watch, rows_at_once):
    "`DPOTrainer` on the same model with PEFT's adapters, given our ids; about as many pairs a step as our rows hold on average, or the very same"
    import accelerate, datasets, peft, torch._dynamo, torch.profiler, transformers, trl.trainer.dpo_trainer
    from lumi_lab.batches import Mixture
    quiet()
    packed,found = pairs(args.data)
    a_row,order = packed.n_documents/2/packed.n_rows,None
    at_once = args.pairs_at_once or max(1, round(rows_at_once*a_row))
    if args.same_order: mixture = Mixture([packed], None, t.batch_size, t.seed); order = [sum((pairs_of(packed, row) for row in mixture.row_ids(s)[:,1].tolist()), []) for s in range(t.max_steps)]
    targets = at_once if order else at_once*max(1, round(t.batch_size*a_row/at_once))
    settings = preference_settings(t, args.name=='trl_live', **same_run(t, folder, targets, at_once, args.attention, args.compiled))
    dataset = as_dataset(found); del found
    watch.start()
    trainer = trl_trainer(t, args.base, dataset, settings, order, watch)
    trainer.train()
    return save_merged(trainer.model, args.base, folder/'merged')

# --- the same measure for all ---

def held_out_margins(
    model_path, # A Hugging Face folder in Llama's layout
    reference, # The folder it was trained from
    data, # Packed pairs
    beta, # Of the training
): # [pairs of `val`]
    "Rewards of chosen answers less those of rejected ones, by our model and scoring"
    from lumi_lab.checkpoint import load_transformer
    from lumi_lab.packing import PackedDataset
    from lumi_lab.preference_measures import reward_margins
    from lumi_lab.reference import score_answers,sum_by_answer
    val = PackedDataset.open(data, 'val', kind='dpo')
    return reward_margins(*(sum_by_answer(val, score_answers(load_transformer(p).eval(), val)) for p in (model_path, reference)), beta)

# --- pair by pair ---

def by_us(
    policy, # Folder of a model
    reference, # Folder of the model it was trained from
    data, # Packed pairs
    n_rows, # The first so many rows are looked at
    config, # `DPOConfig` of ours
): # Numbers of the pairs, their losses [n], their rewards [n, 2]
    "What our loss function says of each pair, read from packed rows with the reference beside the tokens"
    import lumi_lab.dpo,torch
    from lumi_lab.checkpoint import load_transformer
    from lumi_lab.packing import PackedDataset
    from lumi_lab.reference import read_pairs,score_answers
    packed,seen,inner = PackedDataset.open(data, 'train', kind='dpo'),[],lumi_lab.dpo.pair_loss
    packed.attach('reference', score_answers(load_transformer(reference).eval(), packed, n_rows=n_rows))
    def overheard(chosen, rejected, *more):
        seen.append((inner(chosen, rejected, *more), torch.stack([chosen, rejected], 1)))
        return seen[-1][0]
    how = {k:getattr(config, k) for k in ('loss', 'beta', 'label_smoothing', 'length_normalised')}
    batch = read_pairs(packed, np.arange(n_rows))
    with torch.no_grad(),patch.object(lumi_lab.dpo, 'pair_loss', overheard): lumi_lab.dpo.preference_loss(load_transformer(policy), batch, **how)
    (losses,changes), = seen
    lengths = batch['lengths'].view(-1, 2) if config.length_normalised else 1
    return sum((pairs_of(packed, row) for row in range(n_rows)), []),losses.numpy(),(config.beta*changes*lengths).numpy()

def by_them(
    policy, # As `by_us` takes it
    reference,
    data,
    numbers, # Of the pairs
    config, # `DPOConfig` of ours
): # Losses [n], rewards [n, 2], and the loss of all pairs as one padded batch
    "What TRL's trainer says of each pair, asked one by one, and of all together"
    import torch,transformers
    from trl.trainer.utils import create_model_from_path
    quiet()
    found = {k:[v[i] for i in numbers] for k,v in pairs(data)[1].items()}
    with tempfile.TemporaryDirectory() as folder:
        t = config.model_copy(update=dict(max_steps=1, warmup_ratio=None))
        trainer = trl_trainer(t, policy, as_dataset(found), preference_settings(t, True, **same_run(t, Path(folder), 1, 1)), reference=create_model_from_path(str(reference), attn_implementation='sdpa', dtype='float32'))
        examples,losses,rewards = [dict(zip(found, each)) for each in zip(*found.values())],[],[]
        with torch.no_grad():
            for example in examples:
                losses.append(float(trainer.compute_loss(trainer.model, trainer.data_collator([example]))))
                rewards.append([trainer._metrics['train' if trainer.model.training else 'eval'][f'rewards/{k}'][-1] for k in ('chosen', 'rejected')])
            together = None if config.label_smoothing else float(trainer.compute_loss(trainer.model, trainer.data_collator(examples)))
    return np.array(losses),np.array(rewards),together

# --- one run, from inside ---

class PairWatch(Stopwatch):
    "Of pairs: a target is a pair, and the reference may have taken its time before the first step"
    reference = None
    def report(self, n_pairs):
        "Beside the rest: pairs, and pairs per second when all `n_pairs` are gone through once, reference included"
        found = super().report()
        speed = found['targets_per_second']
        return dict(found, pairs=found['targets'], pairs_per_second=speed, reference_seconds=self.reference, pairs_per_second_with_reference=1/(1/speed+(self.reference or 0)/n_pairs), losses=self.losses)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', choices=NAMES)
    for flag in ('base', 'data', 'tokenizer', 'config', 'out'): parser.add_argument(f'--{flag}', required=True)
    parser.add_argument('--steps', type=int, required=True); parser.add_argument('--rows-at-once', type=int, help='rows that go through the model together; by default what the config says'); parser.add_argument('--pairs-at-once', type=int, help='pairs that go through TRL together; by default as many as those rows hold on average')
    parser.add_argument('--attention', default='sdpa', help="Transformers' attention, for TRL"); parser.add_argument('--compiled', action='store_true', help='torch.compile, for TRL')
    parser.add_argument('--same-order', action='store_true', help='TRL gets the pairs of our steps, step by step, each in one piece'); parser.add_argument('--no-margins', action='store_true', help='leave the held-out pairs out'); parser.add_argument('--keep', help='where the final model is to stand')
    args = parser.parse_args()
    if trouble := why_not(args.name): sys.exit(trouble)
    from lumi_lab.artifact import load_manifest
    from lumi_lab.config import load_config
    from lumi_lab.finetuning import with_steps
    from lumi_lab.train_dpo import DPOConfig
    t = load_config(DPOConfig, args.config)
    if args.name=='lumi_live' and not t.lora: sys.exit('adapters can be switched off only where there are some')
    t = with_steps(t.model_copy(update=dict(max_steps=args.steps, num_train_epochs=None, reference='adapters_off' if args.name=='lumi_live' else 'precomputed')), 1)
    at_once = args.rows_at_once or t.per_device_train_batch_size
    if t.batch_size%at_once: sys.exit(f'{t.batch_size} rows of a step cannot go in parts of {at_once}')
    watch,begun = PairWatch(),time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        final = (lumi if args.name.startswith('lumi') else trl)(t, args, Path(folder), watch, at_once)
        found = dict(name=args.name, rows_at_once=at_once, rows=t.batch_size, **watch.report(load_manifest(args.data).statistics['train']['pairs']), whole=time.perf_counter()-begun)
        if not args.no_margins: found['margins'] = held_out_margins(final, args.base, args.data, t.beta).tolist()
        if args.keep: shutil.copytree(final, args.keep, dirs_exist_ok=True)
    Path(args.out).write_text(json.dumps(found)+'\n')
    print(json.dumps(found))

if __name__=='__main__': main()
