#!/usr/bin/env python3
"""Many clients at once against a server that speaks OpenAI's protocol, from a process of its own (nbs/benchmarks/serving.ipynb uses this).

`python tools/serving_load.py URL --model NAME --work FILE.json --clients N --out FILE.json` sends the requests of FILE, as `some_work` makes them, each on a connection of its own and streamed, N at a time, and writes for each what came and when"""
import argparse, asyncio, contextlib, json, os, random, re, signal, subprocess, sys, tempfile, time
from pathlib import Path
from urllib.parse import urlsplit

# --- the work ---

def some_work(
    n, # Requests
    vocab_size, # Ids of prompts are below it
    prompt=(8, 128), # Tokens of a prompt: from, to
    answer=(16, 128), # New tokens: from, to
    seed=0, # Of the random numbers
    lowest=100, # Smallest id, above markers and bytes
): # [{'prompt': ids, 'max_tokens': number}]
    "Draw greedy requests, no two alike"
    rng = random.Random(seed)
    return [dict(prompt=[rng.randrange(lowest, vocab_size) for _ in range(rng.randint(*prompt))], max_tokens=rng.randint(*answer)) for _ in range(n)]

# --- the clients ---

async def ask(
    url, # Of the server
    body, # Of the request
): # What came: status, text, tokens, finish_reason; seconds to the first piece and to the end
    "Send one streamed completion request, read the stream"
    where,body,start = urlsplit(url),json.dumps(body).encode(),time.perf_counter()
    res = dict(status=None, text='', tokens=None, finish_reason=None, first=None)
    reader,writer = await asyncio.open_connection(where.hostname, where.port, limit=2**20)
    try:
        writer.write(b'POST /v1/completions HTTP/1.1\r\nHost: %b\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b' % (where.netloc.encode(), len(body), body))
        res['status'] = int((await reader.readline()).split()[1])
        async for line in reader:
            if res['status']!=200 and line.startswith(b'{'): res['text'] += line.decode()
            if not line.startswith(b'data: {'): continue
            event = json.loads(line[6:])
            if 'error' in event: res['status'],res['text'] = 500,str(event['error'])
            for choice in event.get('choices', []):
                if choice['text'] and res['first'] is None: res['first'] = time.perf_counter()-start
                res['text'] += choice['text']
                res['finish_reason'] = choice['finish_reason'] or res['finish_reason']
            if event.get('usage'): res['tokens'] = event['usage']['completion_tokens']
    finally: writer.close()
    return dict(res, seconds=time.perf_counter()-start)

async def load(
    url, # Of the server
    model, # Its name for the model
    work, # As `some_work` gives it
    clients, # Requests on their way at the same time
    more={}, # Further keys of each request
    seconds=None, # Go on with the work from its beginning for so long; None: once
): # What came for each request, in order; seconds of the whole
    "Keep `clients` requests on their way until the work is done"
    start,replies = time.perf_counter(),[]
    def numbers():
        k = 0
        while k<len(work) if seconds is None else time.perf_counter()-start<seconds: yield k; k += 1
    def body(k): return dict(work[k%len(work)], model=model, temperature=0, stream=True, stream_options=dict(include_usage=True), **more)
    async def client(todo):
        for k in todo: replies.append(dict(await ask(url, body(k)), number=k))
    todo = numbers()
    await asyncio.gather(*(client(todo) for _ in range(clients)))
    return dict(replies=sorted(replies, key=lambda r: r['number']), seconds=time.perf_counter()-start)

def measured(url, model, work, clients, more={}, seconds=None):
    "`load` in a process of its own"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder)/'work.json').write_text(json.dumps(work))
        subprocess.run([sys.executable, __file__, url, '--model', model, '--work', f'{folder}/work.json', '--clients', str(clients), '--out', f'{folder}/out.json', '--more', json.dumps(more),
            *(['--seconds', str(seconds)] if seconds else [])], check=True)
        return json.loads((Path(folder)/'out.json').read_text())

def summary(
    got, # As `load` gives it
): # lost (requests), tokens, tokens_per_second, requests_per_second, first_p50, first_p95, seconds_p95
    "What one wants to know of a load"
    sound = [r for r in got['replies'] if r['status']==200 and r['finish_reason'] and r['tokens'] is not None]
    tokens = sum(r['tokens'] for r in sound)
    def share(name, p): v = sorted(r[name] for r in sound if r[name] is not None); return v[min(int(p*len(v)), len(v)-1)] if v else None
    return dict(lost=len(got['replies'])-len(sound), tokens=tokens, tokens_per_second=tokens/got['seconds'], requests_per_second=len(sound)/got['seconds'],
        first_p50=share('first', .5), first_p95=share('first', .95), seconds_p95=share('seconds', .95))

# --- the servers ---

def _free_port():
    import socket
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

@contextlib.contextmanager
def serving(
    command, # Words of the command line; PORT stands for a port
    log, # File for what it says
    patience=120, # Seconds until it must answer
): # Its address, its process
    "Run a server while in the context, from its first sound /health to SIGTERM"
    import httpx
    port = _free_port()
    url = f'http://127.0.0.1:{port}'
    with open(log, 'w') as out:
        process = subprocess.Popen([str(port) if w=='PORT' else str(w) for w in command], stdout=out, stderr=subprocess.STDOUT)
        try:
            end = time.time()+patience
            while True:
                if process.poll() is not None or time.time()>end: raise SystemExit(f'{command[0]} does not serve:\n'+Path(log).read_text()[-2000:])
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f'{url}/health', timeout=2).status_code==200: break
                time.sleep(.1)
            yield url,process
        finally:
            process.send_signal(signal.SIGTERM)
            try: process.wait(30)
            except subprocess.TimeoutExpired: process.kill(); process.wait()

def memory(process):
    "Resident megabytes of a process"
    return int(re.search(r'VmRSS:\s+(\d+) kB', Path(f'/proc/{process.pid}/status').read_text())[1])/1000

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('url'); parser.add_argument('--model', required=True); parser.add_argument('--work', type=Path, required=True); parser.add_argument('--clients', type=int, required=True)
    parser.add_argument('--out', type=Path, required=True); parser.add_argument('--more', type=json.loads, default={}); parser.add_argument('--seconds', type=float)
    a = parser.parse_args()
    a.out.write_text(json.dumps(asyncio.run(load(a.url, a.model, json.loads(a.work.read_text()), a.clients, a.more, a.seconds))))
