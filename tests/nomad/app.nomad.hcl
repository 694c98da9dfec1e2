# A job that writes the time into its volume each second.

variable "volume" {
  type = string
}

variable "plugin_type" {
  type    = string
  default = "monolith"
}

job "app" {
  group "app" {
    volume "data" {
      type            = "csi"
      source          = var.volume
      attachment_mode = "file-system"
      access_mode     = "single-node-writer"
    }

    # A fresh filesystem is root's, and Nomad gives it to nobody else.
    task "owner" {
      driver = "raw_exec"

      lifecycle {
        hook = "prestart"
      }

      config {
        command = "/bin/chown"
        args    = ["nobody", "/opt/nomad/data/client/csi/${var.plugin_type}/lagan/per-alloc/${NOMAD_ALLOC_ID}/${var.volume}/rw-file-system-single-node-writer"]
      }

      resources {
        cpu    = 20
        memory = 20
      }
    }

    task "app" {
      driver = "exec"
      user   = "nobody"

      config {
        command = "/bin/busybox"
        args    = ["sh", "-c", "cd /data && while busybox date +%s >>clock && busybox sync; do busybox sleep 1; done"]
      }

      volume_mount {
        volume      = "data"
        destination = "/data"
      }

      resources {
        cpu    = 20
        memory = 20
      }
    }
  }
}
