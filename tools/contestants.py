#!/usr/bin/env python3
"""One optimizer step of ours, of Hugging Face's Llama and of litgpt's GPT on the same shape, to be timed in turn (the notebooks of nbs/benchmarks use this).

`python tools/contestants.py NAME --architecture tiny --batch 4 [--compiled] [--dtype bfloat16]` takes a few steps in a process of its own and prints the peak memory as JSON."""
import argparse, gc, importlib.util, json, statistics, subprocess, sys, time
from pathlib import Path
import torch

EOS = 2

# --- the contestants: each takes the same arguments and gives a function that does one step and returns its loss ---

def _autocast(device, dtype): return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype!=torch.float32)

def _peer(loss_of, model, device, dtype, learning_rate):
    "A step as a careful user of a library writes it: fused AdamW, clipping, no more than that"
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(.9, .95), weight_decay=.1, fused=True)
    def step():
        optimizer.zero_grad(set_to_none=True)
        with _autocast(device, dtype): loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        return loss.detach()
    return step

def ours(arch, tokens, dtype=torch.float32, compiled=False, attention='auto', document_mask=False, weights=None, learning_rate=1e-3):
    "`train_step` of room 35 on the model of room 32, compiled as the trainer compiles it"
    from lumi_lab.budget import TrainingConfig
    from lumi_lab.engine import WithLoss, next_token_loss, train_step
    from lumi_lab.optim import build_optimizer
    from lumi_lab.transformer import Transformer
    device = tokens.device
    model = Transformer(arch, attention=attention).to(device).train()
    if weights: model.load_state_dict(weights, strict=False)
    if compiled: model.compile_blocks(); model.compiled = True                 # as the trainer does it; the loss looks at `compiled`
    class Cast(torch.nn.Module): # what Accelerate's `prepare` does to forward
        def __init__(self): super().__init__(); self.inner = WithLoss(model, next_token_loss)
        def forward(self, batch):
            with _autocast(device, dtype): return self.inner(batch)
    config = TrainingConfig(name='benchmark', architecture='', per_device_train_batch_size=len(tokens), max_steps=1, learning_rate=learning_rate)
    cast,optimizer,batch = Cast(),build_optimizer(model, config),dict(tokens=tokens, **(_documents(tokens) if document_mask else {}))
    return lambda: train_step(cast, [batch], optimizer, 1.).loss

def _documents(tokens):
    "What a document mask needs, as the trainer makes it"
    from lumi_lab.packing import document_boundaries, document_positions
    positions,ids = document_positions(tokens.cpu(), EOS)
    found = dict(positions=positions, document_ids=ids, boundaries=document_boundaries(ids[:,:-1].contiguous()))
    return {k:v.to(tokens.device) for k,v in found.items()}

def hugging_face(arch, tokens, dtype=torch.float32, compiled=False, attention='sdpa', weights=None, learning_rate=1e-3):
    "`LlamaForCausalLM` with its own loss"
    from transformers import LlamaConfig, LlamaForCausalLM
    from lumi_lab.transformer import hf_config
    keys = {k:v for k,v in hf_config(arch).items() if k not in ('architectures', 'dtype', 'torch_dtype', 'lumi_name')}
    model = LlamaForCausalLM(LlamaConfig(**keys, use_cache=False, attn_implementation=attention)).to(tokens.device).train()
    if weights: model.load_state_dict(weights, strict=False)
    called,x,y = torch.compile(model) if compiled else model,tokens[:,:-1].contiguous(),tokens[:,1:].contiguous()
    return _peer(lambda: called(input_ids=x, labels=y, shift_labels=y).loss, model, tokens.device, dtype, learning_rate)

def litgpt(arch, tokens, dtype=torch.float32, compiled=False, weights=None, learning_rate=1e-3):
    "`GPT` in the shape of a Llama, with the loss of litgpt's own pretraining script"
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy
    config = Config(name=arch.name, block_size=arch.sequence_length, n_layer=arch.n_layer, n_embd=arch.d_model, n_head=arch.n_head, n_query_groups=arch.kv_heads, intermediate_size=arch.d_ff,
        vocab_size=arch.vocab_size, padded_vocab_size=arch.vocab_size, rotary_percentage=1., rope_base=int(arch.rope_theta), parallel_residual=False, bias=False, norm_class_name='RMSNorm',
        norm_eps=arch.rms_norm_eps, mlp_class_name='LLaMAMLP')
    model = GPT(config); model.apply(model._init_weights); model.to(tokens.device).train()
    if weights: model.load_state_dict(_litgpt_names(weights, arch.n_layer), strict=False)
    called,x,y = torch.compile(model) if compiled else model,tokens[:,:-1].contiguous(),tokens[:,1:].contiguous()
    return _peer(lambda: chunked_cross_entropy(called(x), y), model, tokens.device, dtype, learning_rate)

def _litgpt_names(weights, n_layer):
    "Our weights under litgpt's names: q, k and v in one matrix"
    res = {'lm_head.weight':weights['lm_head.weight'], 'transformer.wte.weight':weights['model.embed_tokens.weight'], 'transformer.ln_f.weight':weights['model.norm.weight']}
    for i in range(n_layer):
        part = lambda name: weights[f'model.layers.{i}.{name}.weight']
        h = f'transformer.h.{i}.'
        res |= {h+'norm_1.weight':part('input_layernorm'), h+'norm_2.weight':part('post_attention_layernorm'), h+'attn.qkv.weight':torch.cat([part(f'self_attn.{n}_proj') for n in 'qkv']),
            h+'attn.proj.weight':part('self_attn.o_proj'), h+'mlp.fc_1.weight':part('mlp.gate_proj'), h+'mlp.fc_2.weight':part('mlp.up_proj'), h+'mlp.proj.weight':part('mlp.down_proj')}
    return res

CONTESTANTS = {'Lumi-Lab':ours, 'Hugging Face':hugging_face, 'litgpt':litgpt}
_NEEDS = {'Lumi-Lab':'lumi_lab', 'Hugging Face':'transformers', 'litgpt':'litgpt'}

def why_not(
    name, # Of a contestant
): # A sentence; None if it can take part
    "Say why a contestant stays away"
    if importlib.util.find_spec(_NEEDS[name]) is None: return f'{name} stays away: {_NEEDS[name]} is not installed here (`make bench` makes an environment that has it)'
    try: __import__({'litgpt':'litgpt.model'}.get(_NEEDS[name], _NEEDS[name]))
    except Exception as e: return f'{name} stays away: {_NEEDS[name]} cannot be imported here ({type(e).__name__}: {str(e).splitlines()[0][:120]})'
    return None

# --- the stopwatch ---

def finished(device):
    "Wait until the device has done all it was told"
    if torch.device(device).type=='cuda': torch.cuda.synchronize()

def matrix_rate(
    device='cpu', # Where
    dtype=torch.float32, # Of both factors
    sizes=None, # Rows and columns that are tried; what suits the device if None
    seconds=.2, # For each size
): # Operations per second of the best size
    "Measure how fast this machine multiplies matrices: the ceiling of any training step"
    best = 0
    for n in sizes or ((4096, 8192) if torch.device(device).type=='cuda' else (1024, 2048)):
        a,b = torch.randn(n, n, device=device).to(dtype),torch.empty(n, n, device=device, dtype=dtype)
        torch.mm(a, a, out=b); finished(device)
        start,done = time.perf_counter(),0
        while (passed:=time.perf_counter()-start)<seconds or not done:
            for _ in range(10 if torch.device(device).type=='cuda' else 1): torch.mm(a, a, out=b); done += 1
            finished(device)
        best = max(best, 2*n**3*done/passed)
    return best

def measure(
    build, # Name → function without arguments that builds a contestant and gives its step
    n_tokens, # That a step learns from
    device='cpu', # Where
    dtype=torch.float32, # For the matrix rate
    rounds=5, # Each contestant does so many timed turns
    seconds=1., # A turn takes at least this long, in whole steps
): # Name → dict(start, turns, speeds, shares, and on CUDA peak), explained below; or dict(trouble)
    "Time contestants in turn, round by round, with the machine's matrix rate beside each turn"
    steps,res = {},{}
    torch.compiler.reset()                                                     # shapes of earlier calls must not use up what a compiler is willing to keep
    for name,make in build.items():
        cuda,own = torch.device(device).type=='cuda',0
        if cuda: torch.cuda.empty_cache(); own = -torch.cuda.memory_allocated()
        begun = time.perf_counter()
        try:
            steps[name] = make(); steps[name](); finished(device)
            first = time.perf_counter(); steps[name](); finished(device)
        except torch.OutOfMemoryError:
            steps.pop(name, None); res[name] = dict(trouble='out of memory'); gc.collect(); continue
        res[name] = dict(start=first-begun, turns=max(1, round(seconds/(time.perf_counter()-first))), speeds=[], shares=[]) # seconds until the first step was done; steps in a turn
        if cuda:
            own,before = own+torch.cuda.memory_allocated(),torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats(); steps[name](); finished(device)
            res[name]['peak'] = torch.cuda.max_memory_allocated()-before+own                                             # bytes, of this contestant alone
    for _ in range(rounds):
        for name,step in steps.items():
            rate,begun = matrix_rate(device, dtype),time.perf_counter()
            for _ in range(res[name]['turns']): step()
            finished(device)
            res[name]['speeds'].append(n_tokens*res[name]['turns']/(time.perf_counter()-begun))                          # tokens per second
            res[name]['shares'].append(res[name]['speeds'][-1]/rate)                                                     # times operations per token: share of the matrix rate
    return res

def median_and_spread(numbers): return statistics.median(numbers),min(numbers),max(numbers)

# --- memory, in a process of its own ---

def _status(key): return next(int(l.split()[1])*1024 for l in Path('/proc/self/status').read_text().splitlines() if l.startswith(key))

def peak_on_cpu(step, baseline):
    "Peak of resident memory over two steps beyond `baseline` bytes, after what building and compiling needed has been given back; Linux"
    import ctypes
    step(); step(); gc.collect(); ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')                                                                        # the peak is counted from now on
    step(); step()
    return _status('VmHWM')-baseline

def peak_memory(
    name, # Of a contestant
    architecture, # Of the shipped ones, as "tiny"
    batch, # Rows of a step
    compiled=False, # With torch.compile
    dtype='float32', # Or bfloat16
): # Bytes beyond what the imports take; None where it cannot be measured
    "Run a contestant in a process of its own"
    if not Path('/proc/self/clear_refs').exists(): return None
    line = [sys.executable, __file__, name, '--architecture', architecture, '--batch', str(batch), '--dtype', dtype]+['--compiled']*compiled
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode: raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])['peak']

def random_tokens(vocab_size, rows, length, device='cpu', mean_document=400):
    "Tokens [rows, length+1] drawn evenly, with end marks as often as documents of that mean length have them"
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, vocab_size, (rows, length+1), generator=draw)
    return tokens.masked_fill(torch.rand(tokens.shape, generator=draw)<1/mean_document, EOS).to(device)

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', choices=CONTESTANTS); parser.add_argument('--architecture', default='tiny'); parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--compiled', action='store_true'); parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
    args = parser.parse_args()
    from lumi_lab.budget import ArchitectureConfig
    from lumi_lab.config import load_config
    if trouble := why_not(args.name): sys.exit(trouble)
    arch = load_config(ArchitectureConfig, f'architectures/{args.architecture}.json')
    tokens = random_tokens(arch.vocab_size, args.batch, arch.sequence_length)
    baseline = _status('VmRSS')
    step = CONTESTANTS[args.name](arch, tokens, getattr(torch, args.dtype), args.compiled)
    print(json.dumps(dict(peak=peak_on_cpu(step, baseline))))
