# The graph of runs. `python -m sao_lib reproduce` writes plan.json and calls snakemake with it; the same file
# serves a laptop, a server and a cluster. A run exists when its manifest does: snakemake looks at nothing else.
import json
import os

PLAN = json.load(open(config["plan"]))
OUT = PLAN["outputs"]


rule all:
    input:
        [f"{OUT}/{folder}/run.json" for folder in PLAN["targets"]],


for number, run in enumerate(PLAN["runs"], 1):

    rule:
        name: f"r{number}"
        input:
            ancient([f"{OUT}/{folder}/run.json" for folder in run["inputs"]]),
        output:
            f"{OUT}/{run['folder']}/run.json",
        threads: run["threads"]
        resources:
            **run["resources"],
        params:
            folder=f"{OUT}/{run['folder']}",
        shell:
            "{PLAN[python]} -m sao_lib run {params.folder} --of {PLAN[experiment]}"
