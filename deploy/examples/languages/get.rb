# Prints a secret: ruby get.rb NAME
require "json"
require "net/http"
require "socket"

class Agent < Net::HTTP
  def connect
    path = ENV["LATCHKEY_SOCKET"].to_s
    path = "/run/latchkey/agent.sock" if path.empty?
    @socket = Net::BufferedIO.new(UNIXSocket.new(path), read_timeout: @read_timeout)
    on_connect
  end
end

def get_secret(name)
  # The last argument: no proxy, whatever the environment says.
  agent = Agent.new("localhost", 80, nil)
  agent.read_timeout = 15
  agent.max_retries = 0
  answer = agent.get("/v1/secrets/#{name}")
  raise "#{answer.code} #{answer.body}" unless answer.is_a?(Net::HTTPOK)

  JSON.parse(answer.body)["value"]
end

puts get_secret(ARGV[0])
