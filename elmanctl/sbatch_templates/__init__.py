"""Resource templates: named sets of sbatch options and set-up lines."""

# The link `sbatch_templates` at the top of a checkout must never become a second, generic import name.
if __name__ != "elmanctl.sbatch_templates":
    raise ImportError("import elmanctl.sbatch_templates, not sbatch_templates")
