# The graph of runs. `python -m sao_lib reproduce` writes plan.json and calls snakemake with it; the same file
# serves a laptop, a server and a cluster. A rule is a group: runs that one process does one after another. What it
# leaves for snakemake is a mark; whether a run is done says its own manifest, and `sao_lib run` looks at it.
import json

PLAN = json.load(open(config["plan"]))


rule all:
    input:
        [group["mark"] for group in PLAN["groups"]],


for group in PLAN["groups"]:

    rule:
        name: group["name"]
        input:
            group["inputs"],
        output:
            touch(group["mark"]),
        threads: group["threads"]
        resources:
            **group["resources"],
        params:
            python=PLAN["python"],
            plan=config["plan"],
            runs=group["runs"],
            cards=group["cards"],
        shell:
            "{params.python:q} -m sao_lib run {params.runs:q} --plan {params.plan:q} --cards {params.cards}"
