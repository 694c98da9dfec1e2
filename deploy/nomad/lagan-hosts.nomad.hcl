# Split, first part: the clients with disks as nodes. Their own controller is reached at [cluster] listen by the routers of
# lagan-routers.nomad.hcl, which Nomad asks instead.

variable "binary" {
  type    = string
  default = "/usr/local/bin/lagan"
}

variable "data_dir" {
  type        = string
  default     = "/opt/nomad/data"
  description = "data_dir of the clients, the same on all of them"
}

job "lagan-hosts" {
  type = "system"

  group "lagan" {
    restart {
      mode     = "delay"
      attempts = 3
      interval = "1m"
      delay    = "5s"
    }

    task "lagan" {
      driver = "raw_exec"

      config {
        command = var.binary
        args    = ["serve", "--mode", "all"]
      }

      csi_plugin {
        id                     = "lagan"
        type                   = "node"
        mount_dir              = "${var.data_dir}/client/csi/plugins"
        stage_publish_base_dir = "${var.data_dir}/client/csi/node/lagan"
        health_timeout         = "2m"
      }

      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
