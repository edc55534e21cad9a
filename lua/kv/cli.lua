-- The command line's first file: the launcher runs it as a script, with the module paths set. Everything else is
-- in kv/cli/, where the specs can load it without running it.

os.exit(require("kv.cli.main").run(arg), true)
