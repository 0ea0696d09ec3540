-- A catalog as it was before jobs were for several machines: the tables, and two jobs.
CREATE TABLE job (
    id TEXT PRIMARY KEY, machine TEXT NOT NULL, kind TEXT NOT NULL, duty TEXT, state TEXT NOT NULL,
    over INTEGER NOT NULL, due INTEGER NOT NULL, ended INTEGER, document TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX job_by_machine ON job (machine, id);
CREATE INDEX job_open ON job (over, id);
CREATE INDEX job_by_end ON job (ended);
CREATE INDEX job_by_state ON job (state, id);
CREATE INDEX job_by_machine_and_state ON job (machine, state, id);
CREATE INDEX job_by_machine_and_end ON job (machine, ended);
CREATE INDEX job_by_kind_and_end ON job (kind, state, ended);
CREATE TABLE begun (machine TEXT NOT NULL, duty TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (machine, duty)) WITHOUT ROWID;
CREATE TABLE achieved (
    machine TEXT NOT NULL, duty TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (machine, duty)
) WITHOUT ROWID;
CREATE TABLE space (at INTEGER PRIMARY KEY, free INTEGER NOT NULL);
CREATE TABLE alert (id TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO job VALUES ('20261129120000-aaaaaaaa', 'db', 'backup', 'backup:away', 'done', 1, 1795953600000, 1795953660000, '{"id": "20261129120000-aaaaaaaa", "machine": "db", "request": {"owed": {"policy": "standard", "duty": {"backup": "away"}}}, "by": "policy standard", "state": "done", "due": "2026-11-29T12:00:00Z", "missed": 0, "began": null, "ended": "2026-11-29T12:01:00Z", "attempt": 1, "retry_at": null, "steps": [], "commands": 0, "exit": null, "what": null, "made": null, "incomplete": false, "refuted": false, "cancelling": false}');
INSERT INTO job VALUES ('20261129120100-bbbbbbbb', 'web', 'backup', 'backup:away', 'waiting', 0, 1795953600000, NULL, '{"id": "20261129120100-bbbbbbbb", "machine": "web", "request": {"owed": {"policy": "standard", "duty": {"backup": "away"}}}, "by": "policy standard", "state": "waiting", "due": "2026-11-29T12:00:00Z", "missed": 0, "began": null, "ended": null, "attempt": 1, "retry_at": null, "steps": ["main"], "commands": 0, "exit": null, "what": null, "made": null, "incomplete": false, "refuted": false, "cancelling": false}');
INSERT INTO begun VALUES ('db', 'backup:away', 1795953600000);
PRAGMA user_version = 1;
