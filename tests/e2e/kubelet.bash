# The node's kubelet, and what it shares with the mounter.

kubelet_root=${E2E_KUBELET_ROOT:-/var/lib/kubelet}
plugin=$kubelet_root/plugins/csi.latchkey.dev

minor() { kubectl version -o json 2>/dev/null | jq -r '.serverVersion.minor | gsub("[^0-9]"; "")'; }

# latchkey's CSI driver is for Kubernetes 1.26 and newer. An older kubelet's requests are not HTTP/2 in one place; so that
# the run can be made with it all the same, a process stands in between and corrects that place.
translate_for_old_kubelet() {
  (($(minor) < 26)) || return 0
  note "Kubernetes 1.$(minor): its kubelet is older than the CSI driver supports; tests/e2e/old_kubelet.py corrects its requests"
  "$here/old_kubelet.py" "$kubelet_root" csi.latchkey.dev "$work/signatures" 2>"$work/old_kubelet" &
  translation=$!
}

restart_kubelet() { # by its pid file, or as the caller says
  # shellcheck disable=SC2086 # a command and its arguments
  $E2E_KUBELET
}

# As docs/csi.md says; all pods that had a volume are gone.
remove_plugin() {
  if [[ -n ${translation:-} ]]; then
    kill "$translation" 2>/dev/null || true
    wait "$translation" || true
    translation=
  fi
  umount --lazy "$plugin/run" 2>/dev/null || true
  rm -rf "$plugin"
  rm -f "$kubelet_root/plugins_registry/csi.latchkey.dev-reg.sock"
}

csi_mounts() { awk '$5 ~ "/kubernetes.io~csi/" {print $5}' /proc/self/mountinfo; }
