#!/usr/bin/env python3
"""Click and type through the chat page in a headless Chromium.

`python tools/chat_page_test.py [--screenshots DIR] [--chromium PATH] [--test NAME...]` starts `lumi_serve` over two tiny models that it makes itself (never trained: they answer gibberish), and beside it a scripted
server with the same page, whose answers are known: Markdown, hostile text, errors. One line per check; exit code 1 if one fails, if the page calls a foreign host, or if its content policy is ever violated.
Needs Chromium (Debian's package `chromium`) and the Python package `playwright`."""
import argparse, json, os, re, shutil, subprocess, sys, tempfile, threading, time, traceback, urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MARKDOWN = """## A treaty in three steps

A paragraph with **bold**, *italic*, `inline code` and [a link](https://example.org/treaty).

1. Read it
2. Sign it
   - in ink
   - twice

> Peace with all nations.

```python
def greet(name): # a comment
    return f"Hello, {name}!" * 3
```

| year | treaties |
|:-----|---------:|
| 1794 | 12 |
| 1803 | 7 |
"""
HOSTILE = """<script>window.hacked = 1; alert(1)</script> <img src=x onerror="alert(2)"> <svg onload=alert(3)> <a href="javascript:alert(4)">five</a>
[click](javascript:alert(5)) [data](data:text/html,<script>alert(6)</script>) [vb](vbscript:msgbox) ![pixel](https://evil.example/pixel.png) <iframe src="https://evil.example"></iframe>
<style>body { display: none }</style> <form action="https://evil.example"><button>go</button></form>

```html" onmouseover="alert(7)
<img src=y onerror=alert(8)>
```
"""
SCRIPT = dict(markdown=MARKDOWN, hostile=HOSTILE, long='word '*120, short='Yes.')

class Scripted(BaseHTTPRequestHandler):
    "A server that answers what its last message asks for, word by word, and remembers what it was asked"
    protocol_version,asked,fails = 'HTTP/1.1',[],0
    page,policy = '',''
    def log_message(self, *args): pass
    def whole(self, body, status=200, kind='application/json', **headers):
        body = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for k,v in {'Content-Type':kind, 'Content-Length':str(len(body)), **headers}.items(): self.send_header(k, v)
        self.end_headers(); self.wfile.write(body)
    def do_GET(self):
        if self.path=='/': return self.whole(self.page, kind='text/html; charset=utf-8', **{'Content-Security-Policy':self.policy})
        card = lambda name,chat: dict(id=name, lumi=dict(chat=chat, context=512, parameters=3_900_000))
        self.whole(dict(data=[card('tiny-dpo', True), card('tiny-sft', True), card('tiny-base', False)]))
    def error(self, status, message): self.whole(dict(error=dict(message=message, type='', param=None, code=None)), status)
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        Scripted.asked.append(body)
        chat,said = 'messages' in body,(body['messages'][-1]['content'] if 'messages' in body else body['prompt'].strip().split('\n\n')[-1])
        if said=='busy' and Scripted.fails: Scripted.fails -= 1; return self.error(429, 'too many requests are waiting; try again in a moment')
        self.send_response(200); self.send_header('Content-Type', 'text/event-stream'); self.send_header('Connection', 'close'); self.end_headers()
        try: self.stream(body, chat, said.strip())
        except (BrokenPipeError, ConnectionResetError): pass
        self.close_connection = True
    def stream(self, body, chat, said):
        head = dict(model=body['model'], **(dict(lumi=dict(dropped_messages=2)) if said=='dropped' else {}))
        text = SCRIPT.get(said, f'You said: {said}' if chat else ' and so it went on')
        words = re.findall(r'\S*\s*', text)[:-1]
        for i,word in enumerate(words):
            if said=='broken' and i>1: return
            choice = dict(index=0, finish_reason=None, **(dict(delta=dict(content=word)) if chat else dict(text=word)))
            data = b'data: '+json.dumps(dict(head, choices=[choice]), ensure_ascii=False).encode()+b'\n\n'
            self.wfile.write(data[:9]); self.wfile.flush(); self.wfile.write(data[9:]); self.wfile.flush()
            time.sleep(.02 if said=='long' else .004)
        end = [dict(head, choices=[dict(index=0, delta={}, text='', finish_reason='length' if said=='cut' else 'stop')]), dict(head, choices=[], usage=dict(prompt_tokens=9, completion_tokens=len(words)))]
        self.wfile.write(b''.join(b'data: '+json.dumps(e).encode()+b'\n\n' for e in end)+b'data: [DONE]\n\n')

def make_models(folder):
    "Two toys, never trained: one that chats, one that does not"
    import torch
    from lumi_lab.budget import ArchitectureConfig,TrainingConfig,count_parameters
    from lumi_lab.chat import Chat,load_template
    from lumi_lab.checkpoint import save_checkpoint
    from lumi_lab.optim import build_optimizer
    from lumi_lab.tokenizer import Tokenizer,train_pieces
    from lumi_lab.transformer import Transformer
    tokenizer = Tokenizer(train_pieces(['user system assistant', 'the peace of the people is the law of the land', 'we have kept the treaty with all the nations']*20, 380))
    shape = dict(name='toy', n_layer=4, d_model=64, n_head=2, ffn_ratio=2.0, vocab_size=380, sequence_length=2048)
    arch = ArchitectureConfig(n_parameters=count_parameters(ArchitectureConfig.model_construct(**shape))['total'], **shape)
    training = TrainingConfig(name='toy', architecture='toy', per_device_train_batch_size=1, max_steps=1, warmup_steps=0, learning_rate=1e-3)
    for name,chat in dict(chatty=Chat(load_template('chatml'), tokenizer), base=None).items():
        torch.manual_seed(1); tokenizer.chat,model = chat,Transformer(arch)
        save_checkpoint(folder/name/'final', model, build_optimizer(model, training), tokenizer, dict(step=1), dict(architecture=arch, training=training), [], dict(step=1))
    return [str(folder/n/'final') for n in ('chatty', 'base')]

@contextmanager
def lumi_serve(paths, *more):
    "The real server, and its address"
    process = subprocess.Popen([sys.executable, '-m', 'lumi_lab.serve', '--model_path', *paths, '--port', '0', '--device', 'cpu', '--max_tokens', '1024', '--log-level', 'WARNING', *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1'})
    try:
        line = process.stdout.readline()
        if ' at ' not in line: sys.exit(f'lumi_serve did not start: {process.stderr.read()}')
        yield line.split(' at ')[1].strip(),process
    finally: process.terminate(); process.wait(20)

class Browser:
    "One page after the other, each with nothing kept, and what went wrong in any of them"
    def __init__(self, chromium, shots): self.chromium,self.shots,self.wrong = chromium,shots,[]
    @contextmanager
    def page(self, address, **options):
        context = self.chromium.new_context(**{**dict(viewport=dict(width=1280, height=800), color_scheme='light', accept_downloads=True), **options})
        context.grant_permissions(['clipboard-read', 'clipboard-write'])
        context.add_init_script("addEventListener('securitypolicyviolation', e => console.error('POLICY ' + e.violatedDirective + ' ' + e.blockedURI + ' ' + e.sample))")
        page = context.new_page(); page.set_default_timeout(8000)
        page.on('console', lambda m: self.wrong.append(m.text) if 'POLICY' in m.text or 'Content Security' in m.text else None)
        page.on('pageerror', lambda e: self.wrong.append(f'uncaught: {e}'))
        page.on('dialog', lambda d: (self.wrong.append(f'a dialog says {d.message}'), d.dismiss()))
        context.on('request', lambda r: None if r.url.startswith((address, 'data:', 'blob:')) else self.wrong.append(f'a request to {r.url}'))
        page.goto(address)
        page.locator('select, dialog[open]').first.wait_for()
        try: yield page
        finally: context.close()
    def shot(self, page, name):
        if self.shots: page.wait_for_timeout(80); page.screenshot(path=f'{self.shots}/{name}.png', animations='disabled')

def say(page, text, wait=True):
    page.get_by_label('Message', exact=True).fill(text); page.keyboard.press('Enter')
    if wait: idle(page)
def idle(page): page.wait_for_function("() => !document.querySelector('.live') && !document.querySelector('#stop:not([hidden])') && !document.querySelector('#halt:not([hidden])')", timeout=20000)
def sees(page, text): page.locator('main .turns, #outcome, #toast').get_by_text(text).first.wait_for()
def button(page, name, **more): return page.get_by_role('button', name=name, **more)
def slide(page, label, value): page.get_by_label(label, exact=True).evaluate('(e, v) => { e.value = v; e.dispatchEvent(new Event("input", {bubbles: true})); }', str(value))
def answers(page): return page.locator('.assistant .body')
def fits(page): return page.evaluate("""document.documentElement.scrollWidth <= innerWidth && [...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth) &&
    [...document.querySelectorAll('#stage *')].every(e => e.closest('.code, .table, .unseen, svg') || (b => !b.width || b.left > -1 && b.right < innerWidth + 1)(e.getBoundingClientRect()))""")

def expect(found, wanted):
    if found!=wanted: raise AssertionError(f'{found!r} instead of {wanted!r}')
def last(): return Scripted.asked[-1]

def check_markdown(browser, address):
    "Markdown and code are drawn, in both themes, and code is copied"
    for theme in ('light', 'dark'):
        with browser.page(address, color_scheme=theme) as page:
            browser.shot(page, f'{theme}_empty'); say(page, 'markdown')
            body = answers(page).first
            expect([body.locator(s).count() for s in ('h4', 'strong', 'ol > li', 'ul > li', 'blockquote', '.code pre', 'td', '.keyword')], [1, 1, 2, 2, 1, 1, 4, 2])
            link = body.get_by_role('link', name='a link')
            expect((link.get_attribute('href'), link.get_attribute('rel'), link.get_attribute('target')), ('https://example.org/treaty', 'noopener noreferrer', '_blank'))
            button(page, 'Copy code').click(); expect(page.evaluate('navigator.clipboard.readText()'), 'def greet(name): # a comment\n    return f"Hello, {name}!" * 3')
            button(page, 'Copy answer').click(); expect(page.evaluate('navigator.clipboard.readText()').strip(), MARKDOWN.strip())
            assert re.search(r'\d+ tokens · \d+ tokens/s · first after \d+ ms', page.locator('.stats').inner_text())
            browser.shot(page, f'{theme}_markdown')

def check_hostile(browser, address):
    "Scripts, handlers and links of a hostile answer stay text"
    with browser.page(address) as page:
        say(page, 'hostile'); page.wait_for_timeout(200)
        expect(page.evaluate('[window.hacked, document.querySelectorAll(".body :is(script, img, svg:not(button *), iframe, style, form, [onerror], [onmouseover], a:not([href^=http]))").length]'), [None, 0])
        assert '<script>window.hacked = 1' in answers(page).inner_text() and '[click](javascript:alert(5))' in answers(page).inner_text()
        browser.shot(page, 'hostile')

def check_versions(browser, address):
    "Ask again, browse versions, edit a question and come back"
    with browser.page(address) as page:
        say(page, 'one'); say(page, 'two'); button(page, 'Ask again').first.click(); idle(page)
        expect((answers(page).count(), page.locator('.versions').inner_text()), (1, '2/2'))
        button(page, 'Earlier version').click(); expect(answers(page).all_inner_texts(), ['You said: one', 'You said: two'])
        button(page, 'Edit message').last.click(); page.get_by_label('Edited message').fill('three'); browser.shot(page, 'edit'); page.keyboard.press('Enter'); idle(page)
        expect(answers(page).all_inner_texts()[-1], 'You said: three')
        expect([m['content'] for m in last()['messages']], ['one', 'You said: one', 'three'])
        button(page, 'Earlier version').last.click(); expect(answers(page).all_inner_texts()[-1], 'You said: two')

def check_settings(browser, address):
    "System prompt and sliders reach the request, are remembered and reset"
    with browser.page(address) as page:
        button(page, 'Settings', exact=True).click(); page.get_by_label('System prompt').fill('Be brief.')
        for label,value in {'Temperature':1.3, 'Top p':.5, 'Top k':40, 'Min p':.1, 'Repetition penalty':1.5, 'Max tokens':64}.items(): slide(page, label, value)
        page.get_by_label('Seed').fill('7'); expect(page.locator('#temperature-value').inner_text(), '1.30'); browser.shot(page, 'settings')
        say(page, 'hello'); page.reload(); page.locator('.assistant').wait_for(); say(page, 'more')
        for body in Scripted.asked[-2:]: expect({k:body[k] for k in ('temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty', 'max_tokens', 'seed')}, dict(temperature=1.3, top_p=.5, top_k=40, min_p=.1, repetition_penalty=1.5, max_tokens=64, seed=7))
        expect(last()['messages'][0], dict(role='system', content='Be brief.'))
        slide(page, 'Temperature', 0); assert not page.get_by_label('Top p').is_visible() and not page.get_by_label('Seed').is_visible()
        button(page, 'Reset to defaults').click(); say(page, 'again'); assert 'seed' not in last() and last()['temperature']==.8

def check_conversations(browser, address):
    "Conversations survive a reload; they are renamed, exported, deleted, brought back; broken ones are passed over"
    with browser.page(address) as page:
        say(page, 'first'); button(page, 'New conversation').click(); say(page, 'second')
        page.evaluate("localStorage.setItem('lumi:conversation:broken', '{\"version\":1}'); localStorage.setItem('lumi:conversation:worse', '{')")
        page.reload(); answers(page).wait_for(); listed = page.locator('#list .open')
        expect((listed.all_inner_texts(), answers(page).all_inner_texts()), (['second', 'first'], ['You said: second']))
        button(page, 'Rename “second”').click(); page.keyboard.type('A better name'); page.keyboard.press('Enter'); expect(listed.first.inner_text(), 'A better name')
        with page.expect_download() as download: button(page, 'Export “A better name”').click()
        expect(json.loads(Path(download.value.path()).read_text())['messages'], [dict(role='user', content='second'), dict(role='assistant', content='You said: second')])
        button(page, 'Delete “A better name”').click(); expect(listed.all_inner_texts(), ['first'])
        button(page, 'Undo').click(); expect(listed.all_inner_texts(), ['A better name', 'first'])
        button(page, 'Delete “A better name”').click(); page.reload(); page.locator('#list .open').wait_for(); expect(listed.all_inner_texts(), ['first'])
        page.evaluate("() => { let s = 'x'.repeat(2 ** 20); for (let i = 0; s; i++) try { localStorage.setItem('filler' + i, s); } catch { s = s.slice(s.length / 2 | 0, -1); } }")
        say(page, 'markdown'); sees(page, 'no room left')

def check_theme(browser, address):
    "The theme follows the system until it is chosen, and is remembered"
    with browser.page(address, color_scheme='dark') as page:
        dark = lambda: page.evaluate("getComputedStyle(document.documentElement).backgroundColor")=='rgb(25, 24, 23)'
        assert dark(); page.get_by_label('Light', exact=True).check(force=True); assert not dark(); page.reload(); assert not dark()
        page.get_by_label('Automatic', exact=True).check(force=True); assert dark(); page.emulate_media(color_scheme='light'); assert not dark()

CONTRAST = """() => { const luminance = ([r, g, b]) => { const [x, y, z] = [r, g, b].map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4); return .2126 * x + .7152 * y + .0722 * z; };
  const context = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
  const behind = e => { const layers = []; for (; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor); return layers; };
  const pixel = layers => { for (const c of layers) { context.fillStyle = c; context.fillRect(0, 0, 1, 1); } return context.getImageData(0, 0, 1, 1).data; };
  return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.closest(':disabled, .unseen, #sheet') && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
    const back = behind(e), a = luminance(pixel(back)), b = luminance(pixel([...back, getComputedStyle(e).color])); return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.className + ' ' + e.textContent.slice(0, 30)]; }).sort((a, b) => a[0] - b[0])[0]; }"""
def check_contrast(browser, address):
    "All text has a contrast of 4.5 or more, in both themes"
    for theme in ('light', 'dark'):
        with browser.page(address, color_scheme=theme) as page:
            say(page, 'markdown'); say(page, 'dropped'); say(page, 'broken'); button(page, 'Settings', exact=True).click(); button(page, 'Delete').click(); button(page, 'Undo').click()
            for action in (lambda: None, lambda: page.get_by_role('combobox').select_option('tiny-base'), lambda: page.keyboard.press('?')):
                action(); ratio,what = page.evaluate(CONTRAST); assert ratio>=4.5, f'{theme}: {ratio:.2f} at {what!r}'

def check_keyboard(browser, address):
    "Everything by keyboard: send, new line, stop, edit, new conversation, help"
    with browser.page(address) as page:
        keys = page.keyboard
        keys.type('one'); keys.press('Shift+Enter'); keys.type('two'); keys.press('Enter'); idle(page); expect(last()['messages'][-1]['content'], 'one\ntwo')
        keys.type('long'); keys.press('Enter'); page.wait_for_timeout(300); keys.press('Escape'); idle(page); sees(page, 'Stopped.'); assert 0<len(answers(page).last.inner_text())<550
        keys.press('ArrowUp'); expect(page.get_by_label('Edited message').input_value(), 'long'); keys.press('ControlOrMeta+a'); keys.type('short'); keys.press('Enter'); idle(page); expect(answers(page).last.inner_text(), 'Yes.')
        keys.press('ArrowUp'); keys.press('Escape'); expect(page.evaluate('document.activeElement.id'), 'text')
        keys.press('ControlOrMeta+Shift+KeyO'); page.get_by_role('heading', name='Talk to').wait_for(); keys.press('ControlOrMeta+Comma'); assert page.get_by_label('System prompt').is_visible(); keys.press('Escape')
        page.get_by_role('button', name='Settings', exact=True).focus(); keys.press('?'); assert page.get_by_role('dialog', name='Keyboard').is_visible(); browser.shot(page, 'help'); keys.press('Escape')
        seen = [(keys.press('Tab'), page.evaluate("(e => [e.ariaLabel || (e === document.body ? 'BODY' : e.textContent.trim()), getComputedStyle(e).outlineStyle !== 'none' || !!e.closest('.box, .segments')])(document.activeElement)"))[1] for _ in range(14)]
        assert {'Message', 'Conversations', 'Model', 'New conversation'} <= {s for s,_ in seen}, seen
        assert all(visible for name,visible in seen if name!='BODY'), f'focus is not to be seen: {seen}'

def check_phone(browser, address):
    "A phone, 360 wide: nothing to scroll sideways, drawers open and close"
    with browser.page(address, viewport=dict(width=360, height=740), has_touch=True, is_mobile=True) as page:
        box = page.get_by_label('Message', exact=True)
        for text in ('markdown', 'hostile', 'W'*300): box.fill(text); button(page, 'Send').click(); idle(page); assert fits(page), text[:9]
        page.evaluate("document.querySelector('.scroll').scrollTop = 120"); browser.shot(page, 'phone')
        for name in ('Settings', 'Conversations'):
            button(page, name, exact=True).click(); page.wait_for_timeout(100); assert fits(page); browser.shot(page, f'phone_{name.lower()}'); page.touchscreen.tap(*((8, 300) if name=='Settings' else (350, 300))); assert not page.locator('#panel, #menu').locator('visible=true').count()
        button(page, 'Compare').click(); box.fill('short'); button(page, 'Send').click(); idle(page); assert fits(page); browser.shot(page, 'phone_compare')

def check_compare(browser, address):
    "Two and three models side by side, a base model among them; each goes on by itself"
    with browser.page(address) as page:
        button(page, 'Compare').click(); page.get_by_label('Model 2').select_option('tiny-base'); say(page, 'one'); say(page, 'markdown')
        columns = page.locator('.column'); expect([c.locator('.body').count() for c in columns.all()], [2, 2])
        bodies = {b['model']:b for b in Scripted.asked[-2:]}
        expect((bodies['tiny-base']['prompt'], [m['content'] for m in bodies['tiny-dpo']['messages']]), ('one\n\n and so it went on\n\nmarkdown\n\n', ['one', 'You said: one', 'markdown'])); browser.shot(page, 'compare')
        columns.nth(0).get_by_role('button', name='Ask again').last.click(); idle(page); expect([c.locator('.versions').count() for c in columns.all()], [1, 0])
        button(page, 'Compare').click(); say(page, 'long', wait=False); page.wait_for_timeout(300); browser.shot(page, 'compare_three')
        button(page, 'Stop tiny-sft').click(); page.wait_for_timeout(60); expect(columns.locator('.live').count(), 2); idle(page)
        expect(columns.nth(2).locator('.note').all_inner_texts(), ['Stopped.']); expect(len(answers(page).nth(2).inner_text()), 599)
        button(page, 'Remove tiny-sft').click(); expect(columns.count(), 2); page.reload(); page.locator('.column').nth(1).wait_for()

def check_errors(browser, address):
    "Busy, broken off, cut, forgotten, nobody there: each is said, and can be tried again"
    with browser.page(address) as page:
        Scripted.fails = 1; say(page, 'busy'); expect(page.locator('.error span').inner_text(), 'too many requests are waiting; try again in a moment'); browser.shot(page, 'error')
        button(page, 'Try again').click(); idle(page); expect((answers(page).all_inner_texts(), page.locator('.versions').count()), (['You said: busy'], 0))
        say(page, 'broken'); sees(page, 'The connection broke before')
        say(page, 'dropped'); sees(page, '2 oldest messages did not fit'); say(page, 'cut'); sees(page, 'Cut off at the limit')
        page.context.set_offline(True); say(page, 'anyone?'); sees(page, 'The server cannot be reached'); page.context.set_offline(False)
        button(page, 'Try again').last.click(); idle(page); expect(answers(page).last.inner_text(), 'You said: anyone?')

def check_base(browser, address):
    "A base model goes on with a text, in another colour; taken back, tried again, edited"
    with browser.page(address) as page:
        page.get_by_role('combobox').select_option('tiny-base'); sheet = page.get_by_label('Text to go on with')
        sheet.fill('The state of the union is strong,'); button(page, 'Continue').click(); idle(page)
        whole = 'The state of the union is strong, and so it went on'; expect((sheet.input_value(), page.locator('#mirror mark').all_inner_texts()), (whole, [' and so it went on'])); browser.shot(page, 'base')
        button(page, 'Take back').click(); expect(sheet.input_value(), whole[:33]); page.keyboard.press('Control+Enter'); idle(page); button(page, 'Try again').click(); idle(page); expect(sheet.input_value(), whole)
        sheet.evaluate('e => e.setSelectionRange(37, 37)'); sheet.press('X'); expect(page.locator('#mirror').inner_text().strip('\u200b'), whole[:37]+'X'+whole[37:])
        expect(page.locator('#mirror mark').all_inner_texts(), [' and', ' so it went on']); page.reload(); page.wait_for_function("() => document.querySelectorAll('#mirror mark').length === 2")

def check_server(browser, address):
    "The real server: chat, stop in the middle and the slot is free, a text, a comparison"
    metric = lambda name: sum(float(l.split()[-1]) for l in urllib.request.urlopen(f'{address}/metrics').read().decode().splitlines() if l.startswith(f'lumi_engine_{name}{{'))
    with browser.page(address+'/') as page:
        button(page, 'Settings', exact=True).click(); slide(page, 'Max tokens', 32); slide(page, 'Temperature', 0); slide(page, 'Repetition penalty', 1); say(page, 'peace of the people'); expect((answers(page).count(), page.locator('.error').count()), (1, 0))
        slide(page, 'Max tokens', 1024); say(page, 'law', wait=False); page.wait_for_function("() => document.querySelector('.live')?.textContent.length > 20")
        assert metric('running')==1; button(page, 'Stop', exact=True).click(); idle(page); sees(page, 'Stopped.')
        for _ in range(30):
            if metric('running')==0: break
            page.wait_for_timeout(50)
        expect((metric('running'), metric('finished_cancelled')), (0, 1)); written = answers(page).last.inner_text(); page.reload(); answers(page).nth(1).wait_for(); expect(answers(page).last.inner_text(), written)
        slide(page, 'Max tokens', 48); button(page, 'Compare').click(); say(page, 'treaty'); expect((page.locator('.column').count(), page.locator('.error').count()), (2, 0)); browser.shot(page, 'server_compare')
        button(page, 'New conversation').click(); button(page, 'Remove chatty').click(); page.get_by_label('Text to go on with').fill('we have kept'); button(page, 'Continue').click(); idle(page); assert page.locator('#mirror mark').inner_text().strip()

def check_key(browser, address):
    "A server with a key: asked for once, refused if wrong, kept for the tab only"
    with browser.page(address+'/') as page:
        dialog = page.get_by_role('dialog', name='API key')
        for key in ('wrong', 'secret'): page.get_by_label('API key', exact=True).last.fill(key); browser.shot(page, 'key'); button(page, 'Use this key').click(); page.wait_for_timeout(150)
        dialog.wait_for(state='hidden'); say(page, 'law'); page.reload(); page.locator('.assistant').wait_for(); expect((dialog.is_visible(), page.evaluate('JSON.stringify(localStorage).includes("secret")')), (False, False))

SCRIPTED = dict(markdown=check_markdown, hostile=check_hostile, versions=check_versions, settings=check_settings, conversations=check_conversations, theme=check_theme, contrast=check_contrast,
    keyboard=check_keyboard, phone=check_phone, compare=check_compare, errors=check_errors, base=check_base)
REAL = dict(server=check_server, key=check_key)

def run_check(check, browser, address):
    "One line; True if it failed"
    start = time.monotonic(); browser.wrong.clear()
    try: check(browser, address); assert not browser.wrong, '; '.join(map(str, browser.wrong))[:500]
    except Exception as e: print(f'FAILED {check.__name__[6:]:14} {check.__doc__}\n       {type(e).__name__} at line {traceback.extract_tb(e.__traceback__)[1].lineno}: {str(e)[:1200]}', flush=True); return True
    print(f'ok     {check.__name__[6:]:14} {check.__doc__} ({time.monotonic()-start:.1f} s)', flush=True)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--screenshots'); parser.add_argument('--chromium', default=next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)); parser.add_argument('--test', nargs='+', choices=[*SCRIPTED, *REAL], default=[*SCRIPTED, *REAL])
    args = parser.parse_args()
    if not args.chromium: sys.exit('no Chromium found: install the package chromium, or say where it is with --chromium PATH')
    try: from playwright.sync_api import sync_playwright
    except ImportError: sys.exit('playwright is not installed: pip install playwright')
    from lumi_lab.chat_page import chat_page
    from lumi_lab.door import content_policy
    if args.screenshots: Path(args.screenshots).mkdir(parents=True, exist_ok=True)
    Scripted.page,Scripted.policy = chat_page(),content_policy(chat_page())
    scripted = ThreadingHTTPServer(('127.0.0.1', 0), Scripted); threading.Thread(target=scripted.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=args.chromium, args=['--no-sandbox']); browser = Browser(chromium, args.screenshots)
        failed = [run_check(SCRIPTED[name], browser, f'http://127.0.0.1:{scripted.server_port}/') for name in args.test if name in SCRIPTED]
        paths = make_models(Path(folder)) if REAL.keys() & set(args.test) else []
        for name in (n for n in args.test if n in REAL):
            with lumi_serve(paths, *(['--api_key', 'secret'] if name=='key' else [])) as (address,_): failed.append(run_check(REAL[name], browser, address))
        chromium.close()
    print(f'{len(failed)-sum(map(bool, failed))} of {len(failed)} checks passed'); sys.exit(any(failed))

if __name__=='__main__': main()
