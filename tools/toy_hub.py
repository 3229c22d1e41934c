"""A small server that answers like the Hugging Face hub, for tests: datasets in memory, a log of requests, and faults on demand.

`with ToyHub({'me/tea': {'data/train-0.jsonl': b'…'}}) as hub:` and a process started with `HF_ENDPOINT=hub.url` streams `me/tea` from it.
Library `datasets` asks for the commit of a revision (`/api/datasets/REPO/revision/REV`), lists files (`…/tree/COMMIT`, `…/paths-info/COMMIT`) and reads them
(`/datasets/REPO/resolve/COMMIT/FILE`, which redirects to a store, as the hub's does, and takes `Range`)."""
import hashlib, json, re, socket, threading, time, urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class ToyHub:
    "Repositories by name and commit; `fail` plans faults"
    def __init__(self, repos):
        self.commits,self.main,self.log,self.faults,self.gone = {},{},[],[],set()
        for repo,files in repos.items(): self.commit(repo, files)

    def commit(self, repo, files):
        "Make `files` (path → bytes) the newest commit of `repo`; gives its hash"
        sha = hashlib.sha1(repr([repo, sorted(files.items())]).encode()).hexdigest()
        self.commits[repo, sha],self.main[repo] = files,sha
        return sha

    def fail(self, pattern, what, times=1, after=0, **more):
        "Answer `times` requests whose line matches `pattern` with a fault, after `after` good ones: a status, 'break', 'short', 'refuse', or 'stall' (seconds)"
        self.faults.append(dict(pattern=pattern, what=what, times=times, after=after, **more))

    def fault(self, line):
        "The fault planned for a request, used up"
        for f in self.faults:
            if f['times']<=0 or not re.search(f['pattern'], line): continue
            if f['after']>0: f['after'] -= 1; return None
            f['times'] -= 1
            return f

    def requests(self, pattern=''):
        "Request lines so far that match"
        return [line for line in self.log if re.search(pattern, line)]

    def __enter__(self):
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), type('Handler', (_Handler,), dict(hub=self)))
        self.server.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc): self.server.shutdown(); self.server.server_close()

class _Handler(BaseHTTPRequestHandler):
    protocol_version,disable_nagle_algorithm = 'HTTP/1.1',True
    def log_message(self, *args): pass
    def do_GET(self): self.answer()
    def do_HEAD(self): self.answer()
    def do_POST(self): self.answer()

    def send(self, status, body=b'', **headers):
        if not isinstance(body, bytes): body = json.dumps(body).encode()
        self.send_response(status)
        for k,v in {'Content-Length':len(body), **headers}.items(): self.send_header(k.replace('_', '-'), str(v))
        try:
            self.end_headers()
            if self.command!='HEAD': self.wfile.write(body)
        except ConnectionError: self.close_connection = True # the reader has lost patience

    def hang_up(self):
        self.close_connection = True
        try: self.connection.shutdown(socket.SHUT_RDWR)
        except OSError: pass

    def answer(self):
        path = urllib.parse.unquote(self.path)
        line = f"{self.command} {path} {self.headers.get('Range', '')}".strip()
        form = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        self.hub.log.append(line)
        fault = self.hub.fault(line)
        if fault and fault['what']=='refuse': return self.hang_up()
        if fault and fault['what']=='stall': time.sleep(fault['seconds'])
        if fault and isinstance(fault['what'], int): return self.send(fault['what'], dict(error='planned'), **({'Retry_After':fault['retry_after']} if 'retry_after' in fault else {}))
        self.broken,self.short = bool(fault and fault['what']=='break'),bool(fault and fault['what']=='short')
        path,query = path.split('?')[0],urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        if m := re.fullmatch(r'/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?', path): return self.api(m[1], m[2] or 'revision', m[3] or 'main', m[4] or '', form, query)
        if m := re.fullmatch(r'/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path): return self.resolve(*m.groups())
        if m := re.fullmatch(r'/store/([^/]+/[^/]+)/([^/]+)/(.+)', path): return self.store(*m.groups())
        self.send(404, dict(error='no such place'))

    def files(self, repo, revision):
        "Commit and files of a revision, or None after the answer 404"
        sha = self.hub.main.get(repo) if revision in ('main', 'HEAD') else revision
        if (repo, sha) in self.hub.commits and sha not in self.hub.gone: return sha,self.hub.commits[repo, sha]
        self.send(404, dict(error='not found'), X_Error_Code='RevisionNotFound' if repo in self.hub.main else 'RepoNotFound')

    def entry(self, path, data):
        return dict(type='file', oid=hashlib.sha1(data).hexdigest(), size=len(data), path=path, lfs=dict(oid=hashlib.sha256(data).hexdigest(), size=len(data), pointerSize=130))

    def api(self, repo, what, revision, below, form, query):
        if not (found := self.files(repo, revision)): return
        sha,files = found
        if what=='revision': return self.send(200, dict(_id='0', id=repo, author=repo.split('/')[0], sha=sha, private=False, gated=False, disabled=False, downloads=0, likes=0, tags=[], siblings=[dict(rfilename=p) for p in sorted(files)]))
        folders = {'/'.join(p.split('/')[:k]) for p in files for k in range(1, p.count('/')+1)}
        if what=='paths-info':
            wanted = urllib.parse.parse_qs(form.decode()).get('paths', []) if not form.startswith(b'{') else json.loads(form)['paths']
            return self.send(200, [self.entry(p, files[p]) if p in files else dict(type='directory', oid='0', size=0, path=p) for p in wanted if p in files or p in folders])
        deep = query.get('recursive', ['False'])[0].lower()=='true'
        inside = lambda p: p.startswith(below+'/') if below else True
        own = [p for p in sorted(folders | set(files)) if inside(p) and (deep or '/' not in p[len(below)+1 if below else 0:])]
        if below and below not in folders: return self.send(404, dict(error='no such folder'), X_Error_Code='EntryNotFound')
        self.send(200, [self.entry(p, files[p]) if p in files else dict(type='directory', oid='0', size=0, path=p) for p in own])

    def resolve(self, repo, revision, path):
        if not (found := self.files(repo, revision)): return
        sha,files = found
        if path not in files: return self.send(404, X_Error_Code='EntryNotFound', X_Repo_Commit=sha)
        digest = hashlib.sha256(files[path]).hexdigest()
        self.send(302, X_Repo_Commit=sha, ETag=f'"{digest}"', X_Linked_ETag=f'"{digest}"', X_Linked_Size=len(files[path]), Accept_Ranges='bytes', Location=f'{self.hub.url.replace("127.0.0.1", "localhost")}/store/{repo}/{sha}/{urllib.parse.quote(path)}')

    def store(self, repo, sha, path):
        if sha in self.hub.gone: return self.send(404, dict(error='gone'))
        data = self.hub.commits[repo, sha][path]
        start,end,status,more = 0,len(data),200,{}
        if m := re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', '')):
            start,end,status = int(m[1]),min(len(data), int(m[2])+1 if m[2] else len(data)),206
            if start>=len(data): return self.send(416, Content_Range=f'bytes */{len(data)}')
            more = dict(Content_Range=f'bytes {start}-{end-1}/{len(data)}')
        if self.short: end = (start+end)//2
        if not self.broken: return self.send(status, data[start:end], ETag=f'"{hashlib.sha256(data).hexdigest()}"', Accept_Ranges='bytes', **more)
        self.send_response(status)
        for k,v in {'Content-Length':end-start, **more}.items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers(); self.wfile.write(data[start:start+(end-start)//2]); self.wfile.flush(); self.hang_up()
