"""The output folder: parts of results, receipts of what is done, and the manifest that names what is valid.

The states of a folder, and what takes it from one to the next:

    begin            add            publish                 begin            add, publish
    ─────> begun ─────────> running ───────> published ───────────> adding ───────────────> published
                            │     ^                    │
                            └─────┘                    │ begin, overwriting     add, publish
                         stop, resume                  └─────────> overwriting ─────────────> published (g2)

    state         _receipts/                       parts and _rejects/              _manifest.json, _shards-*.parquet
    ──────────    ─────────────────────────────    ─────────────────────────────    ─────────────────────────────────
    begun         g1/run.json                      none                             none
    running       g1/run.json, g1/<driver>-*       part-<content>.parquet           none
    published     empty                            part-<content>.parquet           name exactly these parts
    adding        g1/run.json, g1/<driver>-*       the old ones, and new ones       name the old ones only
    overwriting   g2/run.json, g2/<driver>-*       the old ones, and *.g2.parquet   name the old ones only

A run that stops leaves the folder as it is, and the same command goes on from there. `_manifest.json` is replaced atomically,
so whoever trusts it sees the old results or the new ones, whole. Besides, `_lock` is there while a driver has the folder open
on a disk, `_attempts/` while shards are worked on (`bulk.attempts`), and jobs put `_report.html` beside the manifest. A part
with audited rows has a file of the same name in `_audits/`, which is written before it and removed with it. A table
in `_delta_log/` follows the manifest (`tables.delta`): what a manifest replaces is removed once the table names it no more.
"""
