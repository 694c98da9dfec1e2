# A job that uses the volume: nomad job run app.nomad.hcl

job "postgres" {
  group "postgres" {
    volume "data" {
      type            = "csi"
      source          = "db"
      attachment_mode = "file-system"
      access_mode     = "single-node-writer"
    }

    task "postgres" {
      driver = "docker"

      config {
        image = "postgres:17"
      }

      env {
        POSTGRES_PASSWORD = "change-me"
        PGDATA            = "/data/postgres"
      }

      volume_mount {
        volume      = "data"
        destination = "/data"
      }

      resources {
        memory = 512
      }
    }
  }
}
