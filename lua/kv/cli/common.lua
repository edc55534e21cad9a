-- The options that every command takes.
return {
  {name = "store", short = "s", argument = "URL", kind = "text", help = "the store to use; default: $KV_URL"},
  {name = "timeout", argument = "SECONDS", kind = "seconds", help = "limit for one operation; default: 5"},
  {name = "help", short = "h", kind = "flag", help = "show this, or a command's own help"},
}
