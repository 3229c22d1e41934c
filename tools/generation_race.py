#!/usr/bin/env python3
"""One contestant of the race of text generators, in a process of its own (nbs/benchmarks/generation.ipynb uses this).

`python tools/generation_race.py NAME --model DIR [--gguf FILE] [--threads 2]` loads the model, then answers lines of JSON, `{"batch":8, "prompt":32, "new":128}`, with the seconds that it took to continue so many prompts by so many tokens, greedily"""
import argparse, contextlib, importlib.util, json, os, subprocess, sys, threading, time, warnings

NAMES = {'lumi':'Lumi-Lab', 'lumi_compiled':'Lumi-Lab, compiled', 'lumi_bf16':'Lumi-Lab, bfloat16', 'lumi_compiled_bf16':'Lumi-Lab, compiled, bfloat16', 'engine':'Lumi-Lab, the server\'s engine', 'general':'Lumi-Lab, without the step of room 41',
    'transformers':'transformers', 'transformers_bf16':'transformers, bfloat16', 'llama_f32':'llama.cpp, f32', 'llama_f16':'llama.cpp, f16', 'llama_python_f32':'llama-cpp-python, f32', 'llama_python_f16':'llama-cpp-python, f16', 'read':'weights read once per token', 'read_half':'weights read once per token, two bytes each'}

def why_not(
    name, # Of a contestant
): # A sentence; None if it can take part
    "Say why a contestant stays away"
    needs = 'transformers' if name.startswith('transformers') else 'llama_cpp' if name.startswith('llama_python') else None
    if needs and importlib.util.find_spec(needs) is None: return f'{NAMES[name]} stays away: {needs} is not installed here'
    if name.startswith('llama_f') and not os.environ.get('LLAMA_BATCHED_BENCH'): return f"{NAMES[name]} stays away: LLAMA_BATCHED_BENCH does not say where llama.cpp's llama-batched-bench is"

def _prompts(batch, n): return [[(7*row+3*i)%900+100 for i in range(n)] for row in range(batch)]

def lumi(model, tokenizer, compiled=False):
    "`generate` of room 45, with all it does to give text; no token ends an answer"
    from lumi_lab.generation import SamplingConfig,generate
    def job(batch, prompt, new):
        done = generate(model, tokenizer, _prompts(batch, prompt), SamplingConfig(temperature=0., max_new_tokens=new), compiled)
        assert {len(g.ids) for g in done}=={new}
    return job

def engine(model, tokenizer, threads):
    "The engine of room 53: all requests at once, each token to a reader"
    from lumi_lab.continuous_batching import Engine
    from lumi_lab.sampling import SamplingConfig
    running = Engine(model, tokenizer, threads=threads)
    def job(batch, prompt, new):
        left,over = [batch],threading.Event()
        def reader(piece):
            if piece.finish_reason: left[0] -= 1
            if not left[0]: over.set()
        with running._wake: [running.submit(p, SamplingConfig(temperature=0., max_new_tokens=new), reader) for p in _prompts(batch, prompt)]
        over.wait()
    return job

def transformers(folder, dtype):
    "`LlamaForCausalLM.generate` on token ids"
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging
    logging.set_verbosity_error(); logging.disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    def job(batch, prompt, new):
        ids = torch.tensor(_prompts(batch, prompt))
        assert model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, pad_token_id=3).shape[1]==prompt+new
    return job

def llama_program(gguf, threads):
    "llama.cpp's own measuring program: decodes without choosing tokens; its times are taken as it tells them"
    def job(batch, prompt, new):
        command = [os.environ['LLAMA_BATCHED_BENCH'], '-m', gguf, '-c', batch*(prompt+new), '-npp', prompt, '-ntg', new, '-npl', batch, '-t', threads, '-tb', threads, '-b', 2048, '-ub', 512, '--output-format', 'jsonl']
        for _ in range(9):                                 # now and then it ends before its last line is out
            out = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
            rows = [json.loads(l) for l in out.splitlines() if l.startswith('{')]
            if rows: return dict(prefill=rows[-1]['t_pp'], decode=rows[-1]['t_tg'])
        raise RuntimeError('llama-batched-bench tells nothing')
    return job

def llama_python(gguf, threads):
    "llama-cpp-python's `generate`: one prompt at a time"
    from llama_cpp import Llama
    model = Llama(str(gguf), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    def job(batch, prompt, new):
        if batch>1: return dict(prefill=None, decode=None)
        model.reset()
        for i,_ in enumerate(model.generate(_prompts(1, prompt)[0], temp=0.), 1):
            if i==new: break
    return job

def reading(model, bytes_each):
    "No model at all: a sum over as many bytes as one token needs of the weights, the faster of two ways"
    import torch
    n = sum(p.numel() for name,p in model.named_parameters() if model.arch.tie_embeddings or 'embed_tokens' not in name)*bytes_each//4
    weights,ones = torch.ones(n//256, 256),torch.ones(256)
    def job(batch, prompt, new):
        best = float('inf')
        for read in (weights.sum, lambda: weights.mv(ones)):
            start = time.perf_counter()
            for _ in range(new): read()
            best = min(best, time.perf_counter()-start)
        return dict(prefill=None, decode=best/batch)
    return job

def contestant(name, folder, gguf, threads):
    if name.startswith('llama_f'): return llama_program(gguf, threads)
    if name.startswith('llama_python'): return llama_python(gguf, threads)
    import torch
    torch.set_num_threads(1 if name=='engine' else threads)
    half = torch.bfloat16 if name.endswith('bf16') else torch.float32
    if name.startswith('transformers'): return transformers(folder, half)
    from lumi_lab.decoding import turn_weights
    from lumi_lab.loading import load_pair
    model,tokenizer,_ = load_pair(folder, folder)
    if name.startswith('read'): return reading(model, 2 if name=='read_half' else 4)
    type(tokenizer).end_ids = frozenset()
    if name=='general': model.hidden = model.hidden        # own `hidden`: the general pass
    model = model.to(half) if name=='general' else turn_weights(model.to(half))
    return engine(model, tokenizer, threads) if name=='engine' else lumi(model, tokenizer, 'compiled' in name)

def measured(job, batch, prompt, new):
    "Seconds for the prompts (with their first token), and for the tokens after it"
    def seconds(n):
        start = time.perf_counter(); told = job(batch, prompt, n)
        return told or time.perf_counter()-start
    whole = seconds(new)
    if isinstance(whole, dict): return whole
    if new==1: return dict(prefill=whole, decode=None)
    first = seconds(1)
    return dict(prefill=first, decode=(whole-first)*new/(new-1))

# --- the notebook's side ---

class Contestant:
    "A process that waits until it is its turn"
    def __init__(self,
        name, # One of `NAMES`
        folder, # A checkpoint
        gguf=None, # The same weights for llama.cpp
        threads=2, # Of the processor
    ):
        command = [sys.executable, __file__, name, '--model', folder, '--threads', threads, *(['--gguf', gguf] if gguf else [])]
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS=str(threads)))
    def __call__(self, **work):
        self.process.stdin.write(json.dumps(work)+'\n'); self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line: raise RuntimeError('a contestant ended')
        return json.loads(line)
    def end(self): self.process.stdin.close(); self.process.wait()

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name', choices=NAMES); parser.add_argument('--model', required=True); parser.add_argument('--gguf'); parser.add_argument('--threads', type=int, default=2)
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    answers = os.fdopen(os.dup(1), 'w'); os.dup2(2, 1)                         # what libraries print goes elsewhere
    job = contestant(args.name, args.model, args.gguf, args.threads)
    for line in sys.stdin: print(json.dumps(measured(job, **json.loads(line))), file=answers, flush=True)
    os._exit(0)
