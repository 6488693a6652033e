"""Resource templates: named sets of sbatch options and set-up lines."""

# The link of this name at the top of a checkout must not become a second, generic import.
if __name__ != "elmanctl.sbatch_templates":
    raise ImportError("import elmanctl.sbatch_templates, not sbatch_templates")
