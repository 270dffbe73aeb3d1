-- A new ledger. The application id tells it from other SQLite files ("MGC4"); user_version is VERSION in ledger.py.
BEGIN IMMEDIATE;
CREATE TABLE pictures (name TEXT PRIMARY KEY, path TEXT NOT NULL, sha256 TEXT NOT NULL, at TEXT NOT NULL);
CREATE TABLE settings (id TEXT PRIMARY KEY, step TEXT NOT NULL, value TEXT NOT NULL);
CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  picture TEXT NOT NULL REFERENCES pictures, sample INTEGER NOT NULL, step TEXT NOT NULL,
  source INTEGER NOT NULL, settings TEXT NOT NULL REFERENCES settings, turn INTEGER NOT NULL,
  data TEXT NOT NULL, at TEXT NOT NULL,
  UNIQUE (picture, sample, step, source, settings, turn)
);
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER events_last BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
PRAGMA application_id = 1296515892;
PRAGMA user_version = 1;
COMMIT;
