"Everything that `pip` needs to know is in settings.ini; this file only passes it on."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

def words(key): return cfg.get(key, '').split()
def lines(key): return [l.strip() for l in cfg.get(key, '').splitlines() if l.strip()]

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', url=cfg['git_url'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=['lumi_lab', 'lumi_lab.*']),
    package_data={'lumi_lab': ['config/**/*.json', 'schemas/*.json', 'reference_runs/**/*', 'static/*.html']}, include_package_data=True, zip_safe=False,
    python_requires='>='+cfg['min_python'], install_requires=words('requirements'),
    extras_require={'dev': words('dev_requirements'), 'flash': words('flash_requirements'), 'export': words('export_requirements'), 'serve': words('serve_requirements'), 'cluster': words('cluster_requirements'), 'trackers': words('trackers_requirements'), 'bench': words('bench_requirements')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['lumi_lab = lumi_lab._modidx:d']},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Developers', 'Intended Audience :: Education',
        'Natural Language :: English', 'Programming Language :: Python :: 3.11', 'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence'],
)
