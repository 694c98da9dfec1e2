# nomad volume create restored.hcl, once snapshot_id is that of `nomad volume snapshot list`. clone_id, with the id of a
# volume, makes a copy of what it is now.
id          = "restored"
name        = "restored"
type        = "csi"
plugin_id   = "lagan"
snapshot_id = "s.…"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}

mount_options {
  fs_type     = "xfs"
  mount_flags = ["noatime"]
}
