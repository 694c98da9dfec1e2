# Lagan on each client, as a process of the host: controller and node in one (raw_exec). Which pools a host has, its
# certificates and the other hosts stand in its /etc/lagan/config.toml.

variable "binary" {
  type    = string
  default = "/usr/local/bin/lagan"
}

variable "data_dir" {
  type        = string
  default     = "/opt/nomad/data"
  description = "data_dir of the clients, the same on all of them"
}

job "lagan" {
  type = "system"

  group "lagan" {
    restart {
      # A volume waits for its driver, however long that takes.
      mode     = "delay"
      attempts = 3
      interval = "1m"
      delay    = "5s"
    }

    task "lagan" {
      driver = "raw_exec"

      config {
        command = var.binary
        args    = ["serve"]
      }

      csi_plugin {
        id   = "lagan"
        type = "monolith"
        # A process of the host gets no mounts: it is told the directories as the host has them.
        mount_dir              = "${var.data_dir}/client/csi/plugins"
        stage_publish_base_dir = "${var.data_dir}/client/csi/monolith/lagan"
        # A start ends what a crash has left, before it answers.
        health_timeout = "2m"
      }

      # What runs is finished first.
      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
