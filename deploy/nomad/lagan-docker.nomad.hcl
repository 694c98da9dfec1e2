# Lagan on each client in a container: controller and node in one. Nomad mounts /dev and its own directories; the client
# allows it with plugin "docker" { config { allow_privileged = true } }.

variable "image" {
  type    = string
  default = "lagan:0.1.0"
}

job "lagan" {
  type = "system"

  group "lagan" {
    restart {
      mode     = "delay"
      attempts = 3
      interval = "1m"
      delay    = "5s"
    }

    task "lagan" {
      driver = "docker"

      config {
        image        = var.image
        args         = ["serve"]
        privileged   = true
        network_mode = "host"
        pid_mode     = "host"

        # The settings, which machine this is, the pool, and hints.
        mount {
          type     = "bind"
          source   = "/etc/lagan"
          target   = "/etc/lagan"
          readonly = true
        }
        mount {
          type     = "bind"
          source   = "/etc/machine-id"
          target   = "/etc/machine-id"
          readonly = true
        }
        mount {
          type   = "bind"
          source = "/srv/lagan"
          target = "/srv/lagan"
          bind_options {
            propagation = "rshared"
          }
        }
        mount {
          type   = "bind"
          source = "/var/lib/lagan"
          target = "/var/lib/lagan"
        }
      }

      csi_plugin {
        id             = "lagan"
        type           = "monolith"
        mount_dir      = "/csi"
        health_timeout = "2m"
      }

      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      resources {
        cpu    = 100
        memory = 256
      }
    }
  }
}
