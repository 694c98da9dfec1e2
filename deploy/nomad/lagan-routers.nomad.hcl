# Split, second part: controllers anywhere, two of them. A router owns no storage; its certificate is router.crt, in a
# directory of each client that may run one.

variable "binary" {
  type    = string
  default = "/usr/local/bin/lagan"
}

variable "hosts" {
  type        = string
  default     = "n1 = \"10.0.0.1:9735\"\nn2 = \"10.0.0.2:9735\"\n"
  description = "[cluster.hosts] of the routers"
}

variable "certificates" {
  type    = string
  default = "/etc/lagan/certs"
}

job "lagan-routers" {
  group "lagan" {
    count = 2

    constraint {
      distinct_hosts = true
    }

    task "lagan" {
      driver = "raw_exec"

      config {
        command = var.binary
        args    = ["--config", "${NOMAD_TASK_DIR}/router.toml", "serve", "--mode", "router"]
      }

      template {
        destination = "local/router.toml"
        data        = <<TOML
http = "off"

[cluster]
certificates = "${var.certificates}"

[cluster.hosts]
${var.hosts}
TOML
      }

      csi_plugin {
        id             = "lagan"
        type           = "controller"
        mount_dir      = "/csi"
        health_timeout = "1m"
      }

      kill_signal = "SIGTERM"

      resources {
        cpu    = 50
        memory = 64
      }
    }
  }
}
