# nomad volume create volume.hcl
id        = "db"
name      = "db"
type      = "csi"
plugin_id = "lagan"

capacity_min = "300MiB"
capacity_max = "1GiB"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}

mount_options {
  fs_type     = "xfs"
  mount_flags = ["noatime"]
}

# Nomad has no word for "where the job will run": say it, or Lagan picks a host with room. The job then runs there.
topology_request {
  required {
    topology {
      segments {
        "lagan.csi/host" = "n2"
      }
    }
  }
}
