#!/usr/bin/env python3
"""One contestant of the race between `train_sft` and TRL's SFTTrainer, in a process of its own (nbs/benchmarks/sft.ipynb uses this).

`python tools/sft_race.py NAME --base DIR --data DIR --tokenizer DIR --config JSON --steps N --out FILE.json` fine-tunes `base` on `data` as the config says, for N steps, and writes speed, peak memory and held-out loss"""
import argparse, contextlib, ctypes, gc, importlib.util, json, logging, os, resource, shutil, subprocess, sys, tempfile, time, warnings
from pathlib import Path
import numpy as np

QUIET = dict(logging_steps=10**9, eval_steps=10**9, eval_rows=1, save_steps=10**9, sample_steps=10**9, sample_prompts=[], save_best=False, trackers=[])
NAMES = {'lumi':'Lumi-Lab', 'trl_packed':'TRL, packed', 'trl_padded':'TRL, padded'}

def why_not(
    name, # Of a contestant; those whose name begins with lumi are ours
    names=NAMES, # Of all, in words
): # A sentence; None if it can take part
    "Say why a contestant stays away"
    missing = [] if name.startswith('lumi') else [m for m in ('trl', 'peft', 'transformers', 'datasets') if importlib.util.find_spec(m) is None]
    return f"{names[name]} stays away: {', '.join(missing)} not installed here (`make bench` makes an environment that has it)" if missing else None

# --- the stopwatch ---

def _status(key):
    "A line of the system's report on this process, in bytes; None where there is none"
    path = Path('/proc/self/status')
    return next((int(l.split()[1])*1024 for l in path.read_text().splitlines() if l.startswith(key)), None) if path.exists() else None

def _peak():
    "The most resident memory so far, in bytes, by the system's own count; where it tells no more than `ru_maxrss`, that may be what the parent had"
    return _status('VmHWM') or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform=='darwin' else 1024)

class Stopwatch:
    "Notes when each step ended, what it read, and the peak of memory"
    def __init__(self): self.ends,self.work,self.tokens,self.targets,self.losses,self.before,self.baseline,self.peak,self.trained = [],[],[],[],[],0,None,0,None

    def start(self):
        "Called when all is imported and the model is not loaded yet: memory is counted from here"
        gc.collect()
        with contextlib.suppress(OSError, AttributeError): ctypes.CDLL(None).malloc_trim(0)
        self.before = _peak()
        if Path('/proc/self/clear_refs').exists(): Path('/proc/self/clear_refs').write_text('5'); self.baseline = _status('VmRSS')

    def step(self,
        tokens, # That are no padding
        targets, # That are learnt: tokens, or pairs of answers
        trained, # Trainable parameters
        loss=None, # Of the step, where somebody compares them
    ):
        "Called when a step has ended"
        self.ends.append(time.perf_counter()); self.work.append(time.process_time()); self.tokens.append(int(tokens)); self.targets.append(int(targets)); self.losses.append(loss)
        self.trained,self.peak = trained,_peak()

    def report(self):
        "What there is to say; the clock runs from the end of the first step to the end of the last"
        seconds,steps = self.ends[-1]-self.ends[0],np.diff(self.ends)
        return dict(steps=len(self.ends), seconds=seconds, tokens=sum(self.tokens), targets=sum(self.targets), tokens_per_second=sum(self.tokens[1:])/seconds, targets_per_second=sum(self.targets[1:])/seconds,
            median_step=float(np.median(steps)), processor_seconds=self.work[-1]-self.work[0], peak=max(self.peak, self.before), rise=None if self.baseline is None else self.peak-self.baseline, trained=self.trained)

# --- the contestants: each trains, and gives the folder of its merged model ---

def told(watch, t, rows_at_once):
    "Have our trainer tell `watch` when a step has ended; the run as it is raced"
    from lumi_lab.tokenizer import PAD
    from lumi_lab.trainer import Trainer
    inner = Trainer.take_step
    def take_step(self, batch):
        inner(self, batch)
        watch.step((batch['tokens']!=PAD).sum(), self.pending[-1].n_targets, sum(p.numel() for p in self.model.parameters() if p.requires_grad), float(self.pending[-1].loss))
    Trainer.take_step = take_step
    logging.getLogger('lumi_lab').setLevel(logging.ERROR)
    return t.model_copy(update=dict(QUIET, per_device_train_batch_size=rows_at_once, gradient_accumulation_steps=t.batch_size//rows_at_once))

def lumi(t, args, folder, watch, rows_at_once):
    "Our own stage function; its trainer tells when a step has ended"
    import lumi_lab.base_model, lumi_lab.lora
    from lumi_lab.train_sft import train_sft
    t = told(watch, t, rows_at_once)
    watch.start()
    train_sft(t, args.base, [args.data], args.tokenizer, folder/'run', force=True)
    return folder/'run/final'

def dialogues(data):
    "All training dialogues as lists of ids and of marks, 1 where the token is learnt"
    from lumi_lab.packing import PackedDataset
    packed = PackedDataset.open(data, 'train', kind='sft')
    starts,flat = packed.tokens.starts,np.fromfile(Path(data)/'train.mask', np.uint8)
    return packed,[packed.tokens.document(i).astype(np.int32) for i in range(packed.n_documents)],[flat[a:b].astype(np.int8) for a,b in zip(starts[:-1], starts[1:])]

_SCHEDULES = dict(cosine='cosine_with_min_lr', linear='linear', constant='constant_with_warmup')

def same_run(t, folder, targets, at_once, attention='sdpa', compiled=False):
    "What TRL's trainers are told of a run, with `targets` examples a step; what only costs time is off"
    if t.optimizer!='adamw' or t.lr_schedule not in _SCHEDULES or (t.lr_schedule=='linear' and t.min_learning_rate_ratio): raise SystemExit(f'{t.optimizer} with schedule {t.lr_schedule} to {t.min_learning_rate_ratio:g} of the peak is nothing that both have')
    return dict(output_dir=str(folder/'trl'), per_device_train_batch_size=at_once, gradient_accumulation_steps=targets//at_once, max_steps=t.max_steps, learning_rate=t.learning_rate, warmup_steps=t.warmup_steps,
        lr_scheduler_type=_SCHEDULES[t.lr_schedule], lr_scheduler_kwargs=dict(min_lr_rate=t.min_learning_rate_ratio) if t.lr_schedule=='cosine' else None, optim='adamw_torch_fused',
        adam_beta1=t.adam_beta1, adam_beta2=t.adam_beta2, adam_epsilon=t.adam_epsilon, weight_decay=t.weight_decay, max_grad_norm=t.max_grad_norm, seed=t.seed,
        model_init_kwargs=dict(attn_implementation=attention, dtype='float32'), gradient_checkpointing=False, bf16=False, fp16=False, use_cpu=True, torch_compile=compiled,
        dataloader_num_workers=0, dataloader_pin_memory=False, save_strategy='no', eval_strategy='no', logging_strategy='no', report_to='none', disable_tqdm=True)

def adapters(lora):
    "The same adapters as PEFT's; None if all weights are trained"
    import peft
    return lora and peft.LoraConfig(r=lora.r, lora_alpha=lora.lora_alpha, lora_dropout=lora.lora_dropout, target_modules=list(lora.target_modules), bias='none', task_type='CAUSAL_LM')

def quiet():
    "Keep the libraries from talking"
    import datasets, transformers
    warnings.filterwarnings('ignore'); transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar(); datasets.disable_progress_bars()

def save_merged(model, base, folder):
    "Write what a trainer has made, adapters merged; the folder"
    (model.merge_and_unload() if hasattr(model, 'merge_and_unload') else model).save_pretrained(folder)
    shutil.copy(Path(base)/'config.json', folder/'config.json')                  # the shape is the base's; this says it in our own keys
    return folder

def trl(t, args, folder, watch, rows_at_once, packed):
    "`SFTTrainer` on the same base with PEFT's adapters, given our ids and masks"
    import datasets, peft, torch, transformers
    from trl import SFTConfig,SFTTrainer
    quiet()
    if t.lora.train_markers: raise SystemExit('lora.train_markers must be false here: the race is between the same adapters')
    data,ids,marks = dialogues(args.data)
    rows,at_once = t.batch_size,rows_at_once
    if not packed: at_once = round(rows_at_once*len(ids)/data.n_rows); rows = at_once*(t.batch_size//rows_at_once)
    settings = SFTConfig(**same_run(t, folder, rows, at_once, args.attention, args.compiled), packing=packed, packing_strategy='bfd', max_length=data.sequence_length+1)
    feature = lambda kind: datasets.Sequence(datasets.Value(kind))
    train = datasets.Dataset.from_dict(dict(input_ids=ids, assistant_masks=marks), features=datasets.Features(input_ids=feature('int32'), assistant_masks=feature('int8')))
    del ids,marks
    class Timed(SFTTrainer):
        def training_step(self, model, inputs, *more, **named):
            self.seen = getattr(self, 'seen', 0)+(inputs['attention_mask'].sum() if 'attention_mask' in inputs else inputs['input_ids'].numel())
            self.learnt = getattr(self, 'learnt', 0)+(inputs['labels'][:,1:]>=0).sum()
            return super().training_step(model, inputs, *more, **named)
    class Watch(transformers.TrainerCallback):
        def on_step_end(self, arguments, state, control, model=None, **named):
            watch.step(trainer.seen, trainer.learnt, sum(p.numel() for p in model.parameters() if p.requires_grad)); trainer.seen = trainer.learnt = 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.base)
    watch.start()
    trainer = Timed(str(args.base), args=settings, train_dataset=train, processing_class=tokenizer, peft_config=adapters(t.lora), callbacks=[Watch()])
    trainer.train()
    return save_merged(trainer.model, args.base, folder/'merged')

def documents_apart(
    base, # Hugging Face folder
    documents, # Lists of ids
): # Logits [tokens, V] of all documents in one line as TRL packs them, of each alone, and of the line without position ids
    "Ask Transformers whether TRL's packed rows keep documents apart"
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation='sdpa', dtype='float32').eval()
    line = DataCollatorForLanguageModeling(pad_token_id=3, padding_free=True)([dict(input_ids=sum(documents, []), labels=sum(documents, []), seq_lengths=[len(d) for d in documents])])
    with torch.no_grad():
        packed = model(input_ids=line['input_ids'], position_ids=line['position_ids'], use_cache=False).logits[0]
        alone = torch.cat([model(input_ids=torch.tensor([d])).logits[0] for d in documents])
        return packed,alone,model(input_ids=line['input_ids'], use_cache=False).logits[0]

def held_out_loss(
    model_path, # A Hugging Face folder in Llama's layout
    data, # Packed dialogues
    rows_at_once=8, # For memory only
): # Nats per learnt token of all held-out dialogues
    "The same measure for all: our model and loss on the rows of `val`, documents apart, as the trainer looks at them"
    import torch
    from lumi_lab.checkpoint import load_transformer
    from lumi_lab.engine import next_token_loss, target_positions
    from lumi_lab.packing import PackedDataset, document_boundaries, document_positions
    from lumi_lab.tokenizer import BOS, EOS
    model,val,total,n = load_transformer(model_path).eval(),PackedDataset.open(data, 'val', kind='sft'),0.,0
    for first in range(0, val.n_rows, rows_at_once):
        rows = np.arange(first, min(first+rows_at_once, val.n_rows))
        batch = dict(tokens=torch.from_numpy(val.rows(rows)), loss_mask=torch.from_numpy(val.masks(rows)))
        positions,ids = document_positions(batch['tokens'], EOS, BOS)
        batch |= dict(targets=target_positions(batch), positions=positions, document_ids=ids, boundaries=document_boundaries(ids[:,:-1]))
        with torch.no_grad(): out = next_token_loss(model, batch)
        total,n = total+float(out.total),n+int(out.n_targets)
    return total/n

# --- what is raced on where speed and memory alone count ---

def random_base(
    folder, # Gets `base` and `tokenizer`
    architecture='architectures/tiny.json', # Shape of the base
): # The tokenizer
    "Write an untrained base, and a vocabulary of invented words of its size"
    import torch
    from lumi_lab.artifact import publish
    from lumi_lab.budget import ArchitectureConfig,TrainingConfig
    from lumi_lab.checkpoint import save_checkpoint
    from lumi_lab.config import load_config
    from lumi_lab.optim import build_optimizer
    from lumi_lab.pieces import train_pieces
    from lumi_lab.tokenizer import Tokenizer
    from lumi_lab.transformer import Transformer
    folder,draw,arch = Path(folder),np.random.default_rng(0),load_config(ArchitectureConfig, architecture)
    letters,V = np.array(list('abcdefghijklmnopqrstuvwxyz')),arch.vocab_size
    words = [''.join(draw.choice(letters, n)) for n in draw.integers(3, 8, V)]
    tokenizer = Tokenizer(train_pieces([' '.join(words[i:i+50]) for i in range(0, V, 50)]*2, V, 'bpe'))
    with publish(folder/'tokenizer', 'tokenizer', {}, []) as draft: tokenizer.save(draft.folder)
    torch.manual_seed(0); model = Transformer(arch)
    optimizer = build_optimizer(model, TrainingConfig(name='random', architecture=architecture, per_device_train_batch_size=1, max_steps=1, learning_rate=1e-3))
    save_checkpoint(folder/'base', model, optimizer, tokenizer, dict(step=0), dict(architecture=arch), [], dict(step=0))
    return tokenizer

def write_documents(
    draft, # Of the artifact
    split, # train or val
    documents, # Lists of ids
    marks, # 1 where the token is learnt, for each
    vocab_size, # Of the tokenizer
    row_length, # Inputs of a row
    together=1, # So many documents share a row in any case
    **counts, # Further numbers for the statistics
):
    "Write one split of packed dialogues, or of packed pairs"
    from lumi_lab.best_fit import plan_rows, write_plan
    from lumi_lab.packing import PackedTokens, PackedWriter
    with PackedWriter(draft.folder/split, vocab_size) as writer:
        for ids in documents: writer.add(ids)
    starts = PackedTokens(draft.folder/split).starts
    rows = plan_rows(starts[::together], row_length); write_plan(draft.folder/f'{split}.rows', rows, row_length)
    mask = np.concatenate(marks).astype(np.uint8); mask.tofile(draft.folder/f'{split}.mask')
    draft.statistics[split] = dict(documents=len(documents), tokens=int(starts[-1]), targets=int(mask.sum()), rows=len(rows.firsts)-1, bytes=int(starts[-1]), **counts)

def random_race(
    folder, # Gets `base`, `tokenizer` and `data`
    architecture='architectures/tiny.json', # Shape of the base
    sequence_length=1024, # Of the rows
    n_dialogues=2000, # Nine of ten to train on
    mean_length=120, # Tokens of a dialogue, roughly; two thirds of them are learnt
): # The three folders, by name
    "Write an untrained base, its vocabulary, and dialogues of random ids"
    from lumi_lab.artifact import publish
    from lumi_lab.chat import load_template
    from lumi_lab.config import resolved
    from lumi_lab.tokenizer import BOS
    folder,draw = Path(folder),np.random.default_rng(1)
    tokenizer = random_base(folder, architecture)
    with publish(folder/'data', 'sft', dict(sequence_length=sequence_length), [], manifest_name='final_manifest.json') as draft:
        for split,n in (('train', n_dialogues*9//10), ('val', n_dialogues//10)):
            sizes = np.clip(draw.lognormal(np.log(mean_length)-.18, .6, n), 12, sequence_length+1).astype(int)
            documents = [[BOS, *draw.integers(300, tokenizer.vocab_size, size-1).tolist()] for size in sizes]
            write_documents(draft, split, documents, [np.arange(size)>=size//3 for size in sizes], tokenizer.vocab_size, sequence_length)
        draft.top.update(tokenizer_config_hash=tokenizer.sha256, template=resolved(load_template('chatml')))
    return {name:folder/name for name in ('base', 'data', 'tokenizer')}

# --- one run, from outside and from inside ---

def run(
    name, # Of a contestant
    place, # Folders by name: base, data, tokenizer
    config, # A JSON file: all hyperparameters, for both
    steps, # Instead of the config's
    threads=2, # Of PyTorch
    *more, # Further flags
    script=__file__, # The race
): # What the contestant reports
    "Run a contestant in a process of its own"
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, script, name, *(f'--{k}={place[k]}' for k in ('base', 'data', 'tokenizer')), f'--config={config}', f'--steps={steps}', f'--out={folder}/out.json', *more]
        env = {**os.environ, 'OMP_NUM_THREADS':str(threads), 'PYTHONPATH':str(Path(__file__).resolve().parents[1]), 'HF_HUB_OFFLINE':'1', 'TOKENIZERS_PARALLELISM':'false'}
        done = subprocess.run(line, capture_output=True, text=True, env=env)
        if done.returncode: raise RuntimeError(f'{name}: {(done.stderr or done.stdout)[-3000:]}')
        return json.loads(Path(f'{folder}/out.json').read_text())

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', choices=NAMES)
    for flag in ('base', 'data', 'tokenizer', 'config', 'out'): parser.add_argument(f'--{flag}', required=True)
    parser.add_argument('--steps', type=int, required=True); parser.add_argument('--rows-at-once', type=int, help='rows that go through the model together; by default what the config says')
    parser.add_argument('--attention', default='sdpa', help="Transformers' attention, for TRL"); parser.add_argument('--compiled', action='store_true', help='torch.compile, for TRL'); parser.add_argument('--no-loss', action='store_true', help='leave the held-out loss out')
    args = parser.parse_args()
    if trouble := why_not(args.name): sys.exit(trouble)
    from lumi_lab.config import load_config
    from lumi_lab.finetuning import FinetuningConfig, with_steps
    t = load_config(FinetuningConfig, args.config)
    t = with_steps(t.model_copy(update=dict(max_steps=args.steps, num_train_epochs=None)), 1)
    at_once = args.rows_at_once or t.per_device_train_batch_size
    if t.batch_size%at_once: sys.exit(f'{t.batch_size} rows of a step cannot go in parts of {at_once}')
    watch,begun = Stopwatch(),time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if args.name=='lumi': final = lumi(t, args, Path(folder), watch, at_once)
        else: final = trl(t, args, Path(folder), watch, at_once, args.name=='trl_packed')
        found = dict(name=args.name, rows_at_once=at_once, rows=t.batch_size, **watch.report(), whole=time.perf_counter()-begun)
        if not args.no_loss: found['held_out_loss'] = held_out_loss(final, args.data)
    Path(args.out).write_text(json.dumps(found)+'\n')
    print(json.dumps(found))

if __name__=='__main__': main()
