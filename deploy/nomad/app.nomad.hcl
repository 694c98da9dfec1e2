# A job that uses a volume. A driver with a filesystem of its own (docker, exec) is given it by volume_mount; raw_exec, as
# here, finds it below the directory of the plugin.

variable "volume" {
  type    = string
  default = "db"
}

variable "data_dir" {
  type    = string
  default = "/opt/nomad/data"
}

job "app" {
  group "app" {
    volume "data" {
      type            = "csi"
      source          = var.volume
      attachment_mode = "file-system"
      access_mode     = "single-node-writer"
    }

    task "app" {
      driver = "raw_exec"

      config {
        command = "/bin/sh"
        args    = ["-c", "cd \"$DATA\" && while date +%s >>clock && sync clock; do sleep 1; done"]
      }

      env {
        DATA = "${var.data_dir}/client/csi/monolith/lagan/per-alloc/${NOMAD_ALLOC_ID}/${var.volume}/rw-file-system-single-node-writer"
      }

      # volume_mount {
      #   volume      = "data"
      #   destination = "/data"
      # }
    }
  }
}
