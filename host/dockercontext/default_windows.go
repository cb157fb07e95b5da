package dockercontext

const defaultDockerHost = "npipe:////./pipe/docker_engine"
