"Packaging: everything that can change stands in settings.ini."
from configparser import ConfigParser
from glob import glob
from os.path import dirname, join
from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
extras = {k.removesuffix("_requirements"): v.split()
          for k, v in cfg.items() if k.endswith("_requirements")}

# Files of the checkout that an installed package reads too, under share/neurocompanion.
SHARED = ["_quarto.yml", "data/*.csv", "nbs/**/*.ipynb", "nbs/*.css", "nbs/*.bib",
          "nbs/site.html", "nbs/site.js", "nbs/*/sweeps/*.yaml", "nbs/*/tables/*", "nbs/tables/*"]
shared = sorted({f for pattern in SHARED for f in glob(pattern, recursive=True)
                 if ".ipynb_checkpoints" not in f})

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    packages=find_packages(include=["neurocompanion", "neurocompanion.*"]),
    package_data={"neurocompanion.fast": ["*.c"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    data_files=[(join("share/neurocompanion", dirname(f)), [f]) for f in shared],
)
