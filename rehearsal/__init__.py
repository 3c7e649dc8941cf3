"""`make rehearse`: a table's whole graph on a CPU, at the row counts and in the processes of a GPU profile.

The notebooks, Snakemake, vLLM, DeepSpeed, the keeper and every file are the real ones. What is not lies in this folder
and says so: tiny random models under the hub's names (`stand_ins`), cards that are none (`command`), and, where
only counting matters, texts out of a bag of words (`canned`). Nothing in sao_lib knows of it.
"""
